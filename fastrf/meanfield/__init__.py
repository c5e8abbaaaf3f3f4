"""The forward pass of a random network's values: variances, and what pixels have in common.

Layers are wide, weights drawn with mean 0 and biases 0 (Poole et al. 2016; Schoenholz et al. 2017).
The signal begins as Gaussian white noise of variance 1. `signal` says what is known of a map and
what each kind of layer makes of it, `laws` what becomes of one channel along an identity; two
passes ask for that. `settling` goes through the network before it is lowered, for gains that follow
from what layers read, and for the laws along identities; `mixing` tells it what fixed weights make
of neighbouring pixels. `slopes` goes through the planes, at the lags at which correlated gradients
reach activations.
"""
