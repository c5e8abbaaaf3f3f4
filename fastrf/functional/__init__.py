"""The arithmetic of fields below the network level, for libraries that embed fastrf.

Array in, array out, without an object per layer: `transposed_conv` and `strided_gather` are single
layers (the backward pass of a convolution, and of a transposed convolution), `propagate` takes an
image through a packed chain of layers, and `profiles` makes the 1-D fields of many chains at once.

Arrays are NumPy's, CuPy's or of any library with DLPack, such as PyTorch's tensors. A tensor of the
host's memory is read where it lies, and results come back as arrays of the same library; arrays on
a GPU are computed with there, on CuPy's current stream (DLPack orders it with the streams of the
array's own library), and nothing waits for the GPU. No library is imported for it, CuPy excepted.

Images are float32 or float64, nonnegative and finite, as variances are; other dtypes are refused
and not converted, and so are tensors that require gradients. Values on a GPU are not looked at,
for that would wait for them: negative ones count as 0. Strided views are read where they lie; what
runs backwards, is read-only, or has batch axes that do not fold into one is copied first, and an
`out` that is not contiguous, or shares memory with the image, is written by a copy at the end.

Sums are of nonnegative numbers only, so that every pixel is right to a few roundings per addend,
however far out in the tail it lies, down to the smallest normal number of its dtype (1.2e-38,
2.2e-308); what is below is 0.
"""

from fastrf.functional.chains import Profiles, Propagated, profiles, propagate
from fastrf.functional.layers import strided_gather, transposed_conv

__all__ = [
    "Profiles",
    "Propagated",
    "profiles",
    "propagate",
    "strided_gather",
    "transposed_conv",
]
