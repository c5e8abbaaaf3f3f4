"""Measured fields: against Jacobians and plain statistics; what `empirical` does and refuses."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf.errors import EmptyFieldError, InputError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from fastrf.empirical.moments import GROUPS, Moments  # noqa: E402
from fastrf.empirical.schemes import prepared  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def generator(seed: int = 0) -> Any:
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    """A convolution, a ReLU that runs twice, and an operator without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 4, 3, padding=1)
        self.body = nn.Sequential(nn.BatchNorm1d(4), nn.Conv1d(4, 4, 3, stride=2, padding=1))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.first(x))
        return self.relu(self.body(x)) + 0


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = Net(), nn.Linear(4, 3)
        self.drop = nn.Dropout()

    def forward(self, x):
        return self.head(self.drop(self.features(x)).mean(2))


def made(kind: type = Net) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return kind()


def images(count: int, shape: tuple[int, ...] = (2, 12)) -> Any:
    return torch.randn((count, *shape), generator=generator(3))


def whole(erf: Any, image: Any = None) -> np.ndarray:
    """The image on the whole input."""
    result = np.zeros(erf.input_size)
    window = zip(erf.origin, erf.shape, strict=True)
    result[tuple(slice(o, o + n) for o, n in window)] = erf.image if image is None else image
    return result


def jacobian(module: Any, batch: Any, unit: int) -> Any:
    """∂y_c/∂x of every image, (images, channels, *x)."""
    module = copy.deepcopy(module).double().eval()
    rows = []
    for x in batch.double():
        rows.append(torch.autograd.functional.jacobian(lambda v: module(v[None])[0, :, unit], x))
    return torch.stack(rows)


# --- against Jacobians ----------------------------------------------------------------------

# float32 gradients of sums of fewer than 100 terms.
ROUNDING = 1e-5


def test_one_channel_is_a_row_of_the_jacobian() -> None:
    module, batch = made(), images(9)
    for channel in (0, 3):
        erf = rf.empirical(module, batch, unit=2, channel=channel)
        squares = jacobian(module, batch, 2)[:, channel].square().mean((0, 1)).numpy()
        assert whole(erf) == pytest.approx(squares / squares.sum(), rel=ROUNDING)
        # Summed over the input's 2 channels, per unit of variance.
        assert erf.log_gain == pytest.approx(math.log(2 * squares.sum()), rel=ROUNDING)


def test_the_sum_of_channels() -> None:
    module, batch = made(), images(5)
    erf = rf.empirical(module, batch, unit=2, channel="sum")
    squares = jacobian(module, batch, 2).sum(1).square().mean((0, 1)).numpy()
    assert whole(erf) == pytest.approx(squares / squares.sum(), rel=ROUNDING)


def test_signs_add_up_squares() -> None:
    """The mean over signs is Σ over channels of squares; its error is what it says."""
    module, batch = made(), images(1)
    erf = rf.empirical(module, batch.expand(4096, 2, 12), unit=2)
    squares = jacobian(module, batch, 2)[0].square()
    image = squares.sum(0).mean(0).numpy()
    z = (whole(erf) - image / image.sum()) / np.where(image > 0, whole(erf, erf.standard_error), 1)
    assert np.abs(z).max() < 4.5  # of at most 7 pixels
    assert np.abs(z).max() > 0.1
    assert erf.log_gain == pytest.approx(math.log(2 * image.sum() / 4), abs=0.1)


def test_more_cotangents_average_out_the_signs() -> None:
    module, batch = made(), images(40)
    one = rf.empirical(module, batch, unit=2)
    many = rf.empirical(module, batch, unit=2, cotangents=16)
    exact = jacobian(module, batch, 2).square().sum(1).mean((0, 1)).numpy()
    exact /= exact.sum()
    assert np.abs(whole(many) - exact).max() < np.abs(whole(one) - exact).max() / 2
    assert many.plan.passes == 16 * one.plan.passes == 640
    assert many.draws == 40


def test_side_by_side_and_one_by_one_agree() -> None:
    """Networks of different weights run through one vmap, or one after the other: the same field,
    within what both say of their error."""
    module, shape = made(), (1, 2, 12)
    together = rf.empirical(module, shape, draws=400, initialise="he")
    apart = rf.empirical(module, shape, draws=400, initialise="he", memory_limit=1, seed=1)
    assert together.plan.at_once > 1
    assert apart.plan.at_once == 1
    error = np.hypot(whole(together, together.standard_error), whole(apart, apart.standard_error))
    z = (whole(together) - whole(apart)) / np.where(error > 0, error, 1)
    assert np.abs(z).max() < 4.5


def test_a_function_that_fills_draws_the_same_with_and_without_vmap() -> None:
    """Weights are drawn module by module then, in the same order."""
    module = nn.Conv1d(2, 3, 3, padding=1, bias=False)

    def fill(part: Any) -> None:
        nn.init.uniform_(part.weight, 1, 2)

    both = [
        rf.empirical(module, images(20), draws=20, initialise=fill, channel=0, memory_limit=limit)
        for limit in (None, 1)
    ]
    assert both[0].plan.at_once > both[1].plan.at_once == 1
    assert both[0].image == pytest.approx(both[1].image, rel=ROUNDING)


# --- statistics -----------------------------------------------------------------------------


def test_moments_are_those_of_all_draws_at_once() -> None:
    values = torch.rand((101, 3, 4), generator=generator(), dtype=torch.float64) ** 4 * 1e-70
    moments = Moments((3, 4), torch.device("cpu"))
    for first, last in ((0, 1), (1, 40), (40, 101)):
        moments.add(values[first:last])
    array = values.numpy()
    total = array.sum((1, 2))
    image = array.mean(0) / total.mean()
    assert moments.image() == pytest.approx(image, rel=1e-12)
    assert moments.log_total == pytest.approx(math.log(total.mean()), rel=1e-14)
    # The error of a ratio of means: that of its residuals.
    rest = (array - image * total[:, None, None]) / total.mean()
    error = rest.std(0, ddof=1) / math.sqrt(101)
    assert moments.standard_error() == pytest.approx(error, rel=1e-9)
    assert moments.effective_draws == pytest.approx(total.sum() ** 2 / (total**2).sum(), rel=1e-12)
    groups = moments.groups()
    assert groups.shape == (GROUPS, 3, 4)
    assert groups.sum(0) == pytest.approx(image, rel=1e-12)
    assert groups[5] == pytest.approx(array[5::GROUPS].sum(0) / array.sum(), rel=1e-12)


def test_draws_without_gradient_weigh_nothing() -> None:
    moments = Moments((2,), torch.device("cpu"))
    moments.add(torch.zeros((3, 2), dtype=torch.float64))
    with pytest.raises(EmptyFieldError, match="no gradient reached the input in 3 draws"):
        _ = moments.log_total
    moments.add(torch.ones((1, 2), dtype=torch.float64))
    assert moments.image() == pytest.approx([0.5, 0.5])
    assert moments.effective_draws == pytest.approx(1)
    with pytest.raises(InputError, match="draws 4 to 4"):
        moments.add(torch.full((1, 2), math.nan, dtype=torch.float64))


def test_the_jackknife_knows_the_error_of_a_mean() -> None:
    """Of the mean position, a ratio of means, the delta method gives the same to first order."""
    erf = rf.empirical(made(), (1, 2, 12), draws=320, initialise="unit")
    shares = erf.groups.sum(1)
    places = erf.groups @ (np.arange(erf.shape[0]) + erf.origin[0])
    rest = (places - erf.mean[0] * shares) * len(shares)
    expected = rest.std(ddof=1) / math.sqrt(len(shares))
    assert erf.uncertainty(lambda e: e.mean) == pytest.approx([expected], rel=0.02)
    assert erf.uncertainty(lambda e: 1.0) == 0.0
    with pytest.raises(InputError, match="was computed"):
        rf.erf(erf.network, input_size=12).uncertainty(lambda e: e.std)


def test_one_draw_has_no_error() -> None:
    erf = rf.empirical(made(), (1, 2, 12), draws=1)
    assert np.isnan(erf.standard_error).all()
    with pytest.raises(InputError, match="is of one draw"):
        erf.uncertainty(lambda e: e.std)


# --- what is measured -----------------------------------------------------------------------


def test_the_result_is_a_field() -> None:
    erf = rf.empirical(made(Classifier), (1, 2, 12), draws=50, initialise="unit", seed=4)
    assert isinstance(erf, rf.ERF)
    assert erf.node == "features.add"
    assert erf.unit == (3,)
    assert erf.image.sum() == pytest.approx(1)
    assert erf.field.size == (5,)
    assert erf.box == ((4, 8),)
    assert erf.draws == 50
    assert not erf.exact
    assert "a sample: the mean of 50 draws" in erf.warnings[0]
    assert math.isnan(erf.lost_mass)
    assert "gradients of Classifier in evaluation, float32 on cpu" in str(erf.plan)
    assert "new in each draw, unit" in str(erf.plan)
    found = erf.to_dict()
    assert found["lost_mass"] is None
    assert found["plan"]["seed"] == 4
    assert erf.luo_size() > 0


def test_saved_and_loaded(tmp_path) -> None:
    erf = rf.empirical(made(), (1, 2, 12), draws=40)
    erf.save(tmp_path / "erf.npz")
    again = rf.ERF.load(tmp_path / "erf.npz")
    for name in ("image", "standard_error", "groups"):
        assert (getattr(again, name) == getattr(erf, name)).all()
    assert (again.draws, again.log_gain, again.plan) == (40, erf.log_gain, str(erf.plan))
    assert again.uncertainty(lambda e: e.std) == erf.uncertainty(lambda e: e.std)
    theory = rf.erf(erf.network, input_size=12)
    theory.save(tmp_path / "theory.npz")
    again = rf.ERF.load(tmp_path / "theory.npz")
    assert (again.draws, again.standard_error, again.groups) == (None, None, None)


def test_the_module_stays_as_it_is() -> None:
    module = made(Classifier).train()
    module(images(4)).sum().backward()
    module.features.body[0].eval()
    before = copy.deepcopy(module.state_dict())
    grads = {name: p.grad.clone() for name, p in module.named_parameters()}
    modes = [part.training for part in module.modules()]
    state = torch.get_rng_state()
    with torch.no_grad():
        rf.empirical(module, images(6), training=True, draws=3, initialise="pytorch")
        rf.empirical(module, images(6))
    assert (torch.get_rng_state() == state).all()
    assert [part.training for part in module.modules()] == modes
    for name, tensor in module.state_dict().items():
        assert (tensor == before[name]).all()
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad
        assert (parameter.grad == grads[name]).all()
    assert not any(part._forward_hooks for part in module.modules())


def test_the_seed_decides() -> None:
    def run(seed: int) -> np.ndarray:
        torch.rand(5)
        return rf.empirical(made(), (1, 2, 12), draws=30, initialise="pytorch", seed=seed).image

    assert (run(1) == run(1)).all()
    assert (run(1) != run(2)).any()


@pytest.mark.parametrize(
    ("output", "node", "size"),
    [
        (None, "features.add", 5),
        ("features", "features.add", 5),
        ("features.add", "features.add", 5),
        ("features.first", "features.first", 3),
        ("features.relu", "features.relu", 3),
        ("features.relu_1", "features.relu_1", 5),
        ("features.body", "features.body.1", 5),
        ("drop", "features.add", 5),
    ],
)
def test_outputs_by_name(output, node, size) -> None:
    """In-place ReLUs do not change what was read before, and the unit sees what it should."""
    module = made(Classifier)
    erf = rf.empirical(module, images(64), output, cotangents=4)
    assert erf.node == node
    assert erf.shape == (size,)
    if output == "features.first":
        squares = module.features.first.weight.detach().double().square().sum((0, 1)).numpy()
        assert erf.image == pytest.approx(squares / squares.sum(), rel=0.2)


class Several(nn.Module):
    """Two inputs, two maps in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 5, padding=2, stride=2)

    def forward(self, left, right):
        return {"fine": self.a(left), "coarse": self.b(torch.cat([self.a(left), right], 1)[:, :2])}


class Later(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 5, padding=2)

    def forward(self, left, right):
        return self.a(left) + self.b(right)


def test_several_outputs() -> None:
    shapes = [(1, 1, 8, 8), (1, 1, 8, 8)]
    erf = rf.empirical(Several(), shapes, "coarse", (1, 2), input=0, draws=20)
    assert (erf.node, erf.unit, erf.shape) == ("b", (1, 2), (6, 7))
    with pytest.raises(InputError, match="returns 2 maps; give output= one of fine, coarse"):
        rf.empirical(Several(), shapes, input=0, draws=2)


def test_several_inputs() -> None:
    shapes = {"left": (1, 1, 8, 8), "right": (1, 1, 8, 8)}
    left = rf.empirical(Later(), shapes, input="left", draws=20)
    right = rf.empirical(Later(), list(shapes.values()), input=1, draws=20)
    assert (left.shape, right.shape) == ((3, 3), (5, 5))
    assert (left.input, right.input) == ("left", "right")
    with pytest.raises(InputError, match="has 2 input maps; give input= one of left, right"):
        rf.empirical(Later(), shapes)
    with pytest.raises(InputError, match="input='up' is no input map"):
        rf.empirical(Later(), shapes, input="up")
    batches = [(images(4, (1, 8, 8)), images(4, (1, 8, 8))) for _ in range(3)]
    assert rf.empirical(Later(), batches, input=1).draws == 12


def test_batches_are_streamed() -> None:
    module, batch = made(), images(50)
    expected = rf.empirical(module, batch, channel=1)
    streamed = rf.empirical(module, (part for part in batch.split(16)), channel=1)
    assert streamed.draws == 50
    assert streamed.image == pytest.approx(expected.image, rel=ROUNDING)
    assert streamed.standard_error == pytest.approx(expected.standard_error, rel=1e-4)
    assert rf.empirical(module, iter(batch.split(16)), channel=1, draws=20).draws == 20
    # With weights of its own, each batch is one draw.
    renewed = rf.empirical(module, batch.split(16), initialise="unit")
    assert (renewed.draws, renewed.plan.passes) == (4, 50)
    arrays = rf.empirical(module, batch.numpy(), channel=1)
    assert arrays.image == pytest.approx(expected.image, rel=ROUNDING)


def test_draws_are_counted_honestly() -> None:
    """Images that share weights or batch statistics are one draw."""
    module = made()
    as_it_is = rf.empirical(module, (4, 2, 12), draws=10)
    renewed = rf.empirical(module, (4, 2, 12), draws=10, initialise="unit")
    training = rf.empirical(module, (4, 2, 12), draws=10, training=True)
    assert [erf.plan.passes for erf in (as_it_is, renewed, training)] == [10, 40, 40]
    assert training.field.size == (None,)  # by the statistics of its batch
    assert rf.empirical(module, images(6), training=True).plan.images == "6 given, together"


def test_in_training_dropout_is_active() -> None:
    module = nn.Sequential(nn.Conv1d(1, 1, 3, bias=False), nn.Dropout(0.5))
    erf = rf.empirical(module, (1, 1, 9), draws=400, training=True)
    rest = rf.empirical(module, (1, 1, 9), draws=400)
    assert 150 < erf.plan.effective_draws < 250
    assert rest.plan.effective_draws == pytest.approx(400)
    assert erf.log_gain - rest.log_gain == pytest.approx(math.log(2), abs=0.2)


def test_half_precision_is_measured_in_single() -> None:
    module = nn.Conv2d(1, 1, 3).to(torch.bfloat16)
    assert rf.empirical(module, (1, 1, 5, 5), draws=2).plan.dtype == "float32"


def test_channels_last_maps() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.LayerNorm(6)

        def forward(self, x):
            return self.norm(self.conv(x).permute(0, 2, 3, 1))

    erf = rf.empirical(Last(), (1, 2, 7, 9), unit=(2, 8), draws=20)
    assert (erf.unit, erf.box) == ((2, 8), ((1, 3), (7, 8)))


# --- modules that cannot be imported ------------------------------------------------------------


class Branching(nn.Module):
    """Control flow that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(2, 4, 5, padding=2)

    def forward(self, x):
        return self.a(x) if x.mean() > 0 else self.b(x)


def test_control_flow_is_measured_and_not_imported() -> None:
    with pytest.raises(InputError, match="depends on the values of a tensor") as error:
        rf.from_torch(Branching(), (1, 2, 12))
    assert "return self.a(x) if x.mean() > 0 else self.b(x)" in str(error.value)
    assert "\n" not in str(error.value)
    module, batch = Branching(), images(30)
    erf = rf.empirical(module, batch.sign() * 0 + 1, "", channel=0)
    squares = module.a.weight.detach()[0].double().square().mean(0).numpy()
    assert erf.image == pytest.approx(squares / squares.sum(), rel=ROUNDING)
    assert "counts as the whole image" in erf.assumptions[0]
    assert "depends on the values of a tensor" in erf.assumptions[0]
    assert erf.field.size == (None,)
    # Weights of their own cannot run side by side then.
    assert rf.empirical(module, (1, 2, 12), "", draws=40, initialise="he").plan.at_once == 1


def test_control_flow_that_skips_the_output() -> None:
    module = Branching()
    with pytest.raises(InputError, match="did not compute 'a' this time"):
        rf.empirical(module, np.stack([np.ones((2, 12)), -np.ones((2, 12))]), "a", memory_limit=1)


# --- schemes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "fill"),
    [
        ("he", nn.init.kaiming_normal_),
        ("kaiming", nn.init.kaiming_normal_),
        ("he-fan-out", lambda w: nn.init.kaiming_normal_(w, mode="fan_out")),
        ("lecun", lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear")),
        ("glorot", nn.init.xavier_normal_),
    ],
)
def test_schemes_are_pytorchs(scheme, fill) -> None:
    layers = {
        "conv": nn.Conv2d(40, 30, 3, groups=5),
        "up": nn.ConvTranspose2d(60, 24, 4, 2, groups=2),
        "full": nn.Linear(90, 110),
    }
    module = nn.ModuleDict(layers)
    deviations: Any = prepared(scheme, module)
    assert set(deviations) == {"conv.weight", "up.weight", "full.weight"}
    for name, part in layers.items():
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            fill(part.weight)
        # At least 2000 weights: 1.6 % of a deviation; four times that.
        assert deviations[f"{name}.weight"] == pytest.approx(
            float(part.weight.detach().std()), rel=0.065
        )
        assert not part.bias.any()


def test_deviations_of_ones_own() -> None:
    """Only what is named is drawn."""
    module = nn.Sequential(nn.Conv1d(1, 1, 3, bias=False), nn.Conv1d(1, 1, 1, bias=False))
    erf = rf.empirical(module, (1, 1, 9), draws=30, initialise={"1.weight": 2.0})
    squares = module[0].weight.detach().double().square().flatten().numpy()
    assert erf.image == pytest.approx(squares / squares.sum(), rel=ROUNDING)


def test_delta_orthogonal_sees_one_pixel() -> None:
    module = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2))
    erf = rf.empirical(module, (1, 2, 9, 9), draws=100, initialise="delta-orthogonal")
    assert erf.box == ((4, 4), (4, 4))
    # Of 8 orthogonal directions the input has 2; the share of one draw is spread by half of it.
    assert erf.log_gain == pytest.approx(math.log(2 / 8), abs=0.3)


def test_unknown_schemes() -> None:
    module = made()
    with pytest.raises(InputError, match="initialise='xavierr' is unknown; give one of unit, he"):
        rf.empirical(module, (1, 2, 12), initialise="xavierr")
    with pytest.raises(InputError, match=r"'first\.wight', which is no parameter"):
        rf.empirical(module, (1, 2, 12), initialise={"first.wight": 1.0})
    with pytest.raises(InputError, match="the standard deviation -1"):
        rf.empirical(module, (1, 2, 12), initialise={"first.weight": -1})
    nn.utils.parametrizations.weight_norm(module.first)
    with pytest.raises(InputError, match="is computed from other parameters"):
        rf.empirical(module, (1, 2, 12), initialise="he")


# --- what is refused ------------------------------------------------------------------------


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3)

    def forward(self, x):
        return self.conv(x).detach()


class Blind(nn.Module):
    def forward(self, x):
        return F.relu(-x.abs() - 1)


@pytest.mark.parametrize("call", [rf.from_torch, rf.empirical])
def test_what_is_no_module(call) -> None:
    with pytest.raises(InputError, match=r"is no torch\.nn\.Module; .* give an instance"):
        call(Net, (1, 2, 12))
    with pytest.raises(InputError, match=r"is no torch\.nn\.Module; wrap a function"):
        call(F.relu, (1, 2, 12))


@pytest.mark.parametrize("call", [rf.from_torch, rf.empirical])
def test_wrong_shapes(call) -> None:
    for shape in ((1, 3, 12), (1, 2, 12, 12)):
        with pytest.raises(InputError, match="does not run on inputs of the shapes") as error:
            call(made(), shape)
        assert str(shape) in str(error.value)
        assert "x = self.relu(self.first(x))" in str(error.value)
        assert "check" in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="with one to three spatial axes"):
        call(made(), (2,))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((0, 2, 12),), {}, "whole numbers of at least 1"),
        ((3,), {}, "3 is neither a shape nor images"),
        (("net.onnx",), {}, "neither a shape nor images"),
        (([],), {}, "the iterable of batches is empty"),
        ((["a"],), {}, "a batch holds 'a', a str"),
        ((np.full((1, 2, 12), np.nan),), {}, "hold NaN or infinity"),
        ((np.zeros((0, 2, 12)),), {}, "holds no image"),
        ((np.ones((3, 2, 12)),), {"draws": 4}, "draws=4 is more than the 3 images given"),
        (((1, 2, 12), "nowhere"), {}, "output='nowhere' is the map of no submodule"),
        (((1, 2, 12), 3), {}, "output=3 must be the name of a map"),
        (((1, 2, 12), None, 6), {}, "unit=6 is outside the map"),
        (((1, 2, 12), None, "left"), {}, "unit='left' is unknown"),
        (((1, 2, 12),), {"channel": 4}, "channel=4 is no channel"),
        (((1, 2, 12),), {"channel": "all"}, "channel='all' is no channel"),
        (((1, 2, 12),), {"draws": 0}, "draws=0 must be a whole number of at least 1, or None"),
        (((1, 2, 12),), {"cotangents": 1.5}, "cotangents=1.5 must be a whole number"),
        (((1, 2, 12),), {"seed": -1}, "seed=-1 must be a whole number of at least 0"),
        (((1, 2, 12),), {"memory_limit": 0}, "memory_limit=0 must be"),
        (([(1, 2, 12), (2, 2, 12)],), {"input": 0}, "differ in their first number"),
    ],
)
def test_what_is_refused(arguments, options, message) -> None:
    with pytest.raises(InputError) as error:
        rf.empirical(made(), *arguments, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_modules_that_cannot_be_measured() -> None:
    shape = (1, 2, 12)
    with pytest.raises(InputError, match="no gradient leads from"):
        rf.empirical(Detached(), shape)
    with pytest.raises(EmptyFieldError, match="no gradient reached the input in 3 draws"):
        rf.empirical(Blind(), shape, draws=3)
    with pytest.raises(InputError, match="has no weights"), torch.device("meta"):
        rf.empirical(made(), shape)
    with pytest.raises(InputError, match="is lazy"):
        rf.empirical(nn.LazyConv1d(2, 3), shape)
    module = made()
    module.kept = module(images(1))
    with pytest.raises(InputError, match="cannot be copied"):
        rf.empirical(module, shape)
    large = nn.Sequential(nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 3))
    with pytest.raises(InputError, match="the gradient holds"):
        rf.empirical(large, shape, initialise={"0.weight": 1e30, "1.weight": 1e30}, draws=2)


# --- comparing ------------------------------------------------------------------------------


def test_what_compare_refuses() -> None:
    module = made()
    experiment = rf.empirical(module, (1, 2, 12), draws=40, initialise="unit")
    theory = rf.erf(experiment.network, input_size=12)
    with pytest.raises(InputError, match="is no field"):
        rf.compare(theory, experiment.image)
    with pytest.raises(InputError, match="a computed field first and a measured one second"):
        rf.compare(experiment, theory)
    with pytest.raises(InputError, match="compute it with input_size=\\(12,\\)"):
        rf.compare(rf.erf(experiment.network), experiment)
    with pytest.raises(InputError, match="different units"):
        rf.compare(rf.erf(experiment.network, input_size=12, unit=1), experiment)
    with pytest.raises(InputError, match="is of 10 draws, too few"):
        rf.compare(theory, rf.empirical(module, (1, 2, 12), draws=10))
    with pytest.raises(InputError, match="share=2"):
        rf.compare(theory, experiment, share=2)


def test_a_comparison_is_a_table() -> None:
    module = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    experiment = rf.empirical(module, (1, 1, 7, 7), draws=200, initialise="unit")
    theory = rf.erf(experiment.network, input_size=7)
    comparison = rf.compare(theory, experiment)
    assert comparison
    assert comparison.pixels == 25
    found = comparison.to_dict()
    assert found["ok"] is True
    assert [row["name"] for row in found["rows"]][:3] == [
        "mean, axis 0", "mean, axis 1", "std, axis 0",
    ]  # fmt: skip
    assert "largest |z| of 25 pixels" in str(comparison)
    assert "FAIL" not in str(comparison)
    # z is what it is said to be.
    z = (experiment.image - theory.image) / experiment.standard_error
    assert comparison.scores == pytest.approx(z, rel=1e-3, abs=1e-3)
    assert abs(comparison.largest) == pytest.approx(np.abs(z).max(), rel=1e-3)
    # A field of another network is none of this one.
    wide = rf.Sequential(rf.Conv(3, padding=1), rf.Conv(1))
    other = rf.compare(rf.erf(wide, input_size=7), experiment)
    assert not other
    assert other.spilled > 0.3
    assert "FAIL" in str(other)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_the_figure(ndim, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    from fastrf.plot import comparison_figure

    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[ndim]
    module = nn.Sequential(conv(1, 3, 3, padding=1), conv(3, 3, 3, padding=1))
    experiment = rf.empirical(module, (1, 1, *(7,) * ndim), draws=40, initialise="unit")
    theory = rf.erf(experiment.network, input_size=7)
    figure = comparison_figure(theory, experiment)
    curves = [axes for axes in figure.axes if axes.lines and not axes.images]
    profiles, ratios = curves[::2], curves[1::2]
    assert profiles[0].get_ylabel() == "mass per pixel"
    assert ratios[0].get_ylabel() == "ratio"
    assert len(profiles) == len(ratios) == ndim
    for axis, (above, below) in enumerate(zip(profiles, ratios, strict=True)):
        computed, measured = (line.get_ydata() for line in above.lines)
        assert computed == pytest.approx(theory.profile(axis))
        assert measured == pytest.approx(experiment.profile(axis))
        assert below.lines[1].get_ydata() == pytest.approx(measured / computed)
        # The band is two of the jackknife's errors wide on either side.
        error = experiment.uncertainty(lambda e, a=axis: e.profile(a))
        (band,) = above.collections
        low, high = (band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1])
        assert low == pytest.approx((measured - 2 * error).min())
        assert high.max() == pytest.approx((measured + 2 * error).max())
    shown = [axes.get_title() for axes in figure.axes if axes.images]
    assert shown == (["theory", "experiment", "z"] if ndim == 2 else [])
    assert "agree" in figure.get_suptitle()
    figure.savefig(tmp_path / "figure.png")
