"""The attacks against closed forms and an independent implementation, and their bounds."""

import math
from dataclasses import replace
from decimal import Decimal, localcontext

import foolbox
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from toys import Linear, convnet, each_attack, images, margins, seeded, two_classes

from rnlib.attacks import (
    BIM,
    PGD,
    PGDL2,
    CarliniWagner,
    GaussianNoise,
    Grad,
    GradSign,
    equal_weight,
    success,
)

# Closed forms -------------------------------------------------------------------------------------

EPS = torch.tensor([0.02, 0.05], dtype=torch.float64).view(1, 2, 1, 1)
EPS_TUPLE = (0.02, 0.05)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "equal_weight"])
@pytest.mark.parametrize(
    "attack", [GradSign(EPS_TUPLE), BIM(EPS_TUPLE), PGD(EPS_TUPLE), PGD(EPS_TUPLE, restarts=2)], ids=repr
)
def test_linf_optimum_of_a_linear_model(attack, loss):
    model, x, y, uphill = two_classes()
    adv = replace(attack, loss=loss)(model, x, y, generator=seeded())
    torch.testing.assert_close(adv, x + EPS * uphill.sign(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("targeted", [False, True])
def test_the_masked_margin_moves_the_images_alone_that_have_not_reached_their_aim(targeted):
    model, x, y, uphill = two_classes()
    other = torch.tensor([True, False, True, False, False])  # labels that are not the model's answer
    labels = torch.where(other, 1 - y, y)
    moving = other if targeted else ~other  # all of them away from the model's answer
    adv = GradSign(0.001, loss="masked_margin", targeted=targeted)(model, x, labels)
    assert torch.equal(adv[~moving], x[~moving])
    torch.testing.assert_close(adv[moving], (x + 0.001 * uphill.sign())[moving], rtol=0, atol=1e-12)


@pytest.mark.parametrize("eps", [(0.02, 0.05), (0.1, 0.1), 0.1])
@pytest.mark.parametrize("options", [None, {"steps": 200}, {"random_start": False}])
def test_l2_optimum_of_a_linear_model_in_the_space_divided_by_eps(options, eps):
    model, x, y, uphill = two_classes()
    per_channel = torch.tensor(eps, dtype=x.dtype).view(-1, 1, 1)
    direction = uphill * per_channel
    expected = x + per_channel * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    attack = Grad(eps) if options is None else PGDL2(eps, **options)
    adv = attack(model, x, y, generator=seeded())
    torch.testing.assert_close(adv, expected, rtol=0, atol=1e-6)


def test_l2_optimum_of_a_linear_model_at_the_wall_of_the_box():
    # The wall takes no share of the ball: all of eps goes to the pixels that can move.
    model, x, y, uphill = two_classes()
    x[:, 0] = (uphill[:, 0] > 0).double()
    free = uphill.clone()
    free[:, 0] = 0
    expected = x + 0.1 * free / free.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    adv = PGDL2(0.1, steps=100, random_start=False)(model, x, y)
    torch.testing.assert_close(adv, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_carlini_wagner_finds_the_distance_to_the_boundary_of_a_linear_model(confidence):
    model, x, y, uphill = two_classes()
    attack = CarliniWagner(steps=150, lr=0.005, binary_search_steps=8, confidence=confidence)
    adv = attack(model, x, y)
    assert success(model, adv, y).all()
    distance = (adv - x).flatten(1).norm(dim=1)
    expected = (confidence - margins(model, x, y)) / uphill.flatten(1).norm(dim=1)
    assert (distance >= expected * (1 - 1e-4)).all()
    torch.testing.assert_close(distance, expected, rtol=0.02, atol=0)
    assert (margins(model, adv, y) >= confidence).all()


def test_steps_and_step_size():
    model, x, y, uphill = two_classes()
    moved = BIM(0.1, steps=3, step_size=(0.01, 0.02))(model, x, y) - x
    step = torch.tensor([0.03, 0.06], dtype=x.dtype).view(1, 2, 1, 1)
    torch.testing.assert_close(moved, step * uphill.sign())
    torch.testing.assert_close(BIM(0.1, steps=4)(model, x, y) - x, 0.04 * uphill.sign())  # None is eps / 10
    length = (PGDL2(0.1, steps=4, random_start=False)(model, x, y) - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.full_like(length, 0.04))


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "equal_weight"])
def test_gradients_are_those_of_the_summed_loss_under_batch_statistics(loss):
    model, (x, y) = convnet(dtype=torch.float64).train(), images(dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    if loss == "margin":
        others = logits.masked_fill(F.one_hot(y, 5).bool(), -math.inf)
        summed = (others.amax(1) - logits.gather(1, y[:, None])[:, 0]).sum()
    else:
        at_logits = (logits.softmax(1) - F.one_hot(y, 5)).detach()  # the gradient of the cross-entropy
        weights = 1 / at_logits.norm(dim=1) if loss == "equal_weight" else torch.ones(len(y))
        summed = (weights * F.cross_entropy(logits, y, reduction="none")).sum()
    grad = torch.autograd.grad(summed, leaf)[0]
    by_sign = GradSign(0.01, loss=loss)(model, x, y)
    torch.testing.assert_close(by_sign, (x + 0.01 * grad.sign()).clamp(0, 1))
    norm = grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(Grad(0.01, loss=loss)(model, x, y), (x + 0.01 * grad / norm).clamp(0, 1))


# Logits of four images: unsure, wrong, sure, and sure enough for a true class of probability 1 - 2e-31.
LOGITS = [[0.3, -0.2, 0.9], [5.0, 80.0, 1.0], [80.0, 0.0, 1.0], [71.0, 0.5, 0.0]]


def exact_gradient(row, y):
    """softmax(z) - onehot(y) divided by its length, and the cross-entropy, in 90 digits."""
    with localcontext(prec=90):
        exponentials = [Decimal(z).exp() for z in row]
        p = [e / sum(exponentials) for e in exponentials]
        gradient = [q - (k == y) for k, q in enumerate(p)]
        length = sum(g * g for g in gradient).sqrt()
        return [float(g / length) for g in gradient], float(-p[y].ln())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_weight_has_the_direction_of_the_cross_entropy_and_length_1_at_the_logits(dtype):
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    loss = equal_weight(logits, torch.zeros(4, dtype=torch.long))
    loss.sum().backward()
    for row, found, value in zip(logits.tolist(), logits.grad.double(), loss.tolist(), strict=True):
        gradient, cross_entropy = exact_gradient(row, 0)
        torch.testing.assert_close(found, torch.tensor(gradient, dtype=torch.float64), rtol=1e-6, atol=1e-30)
        assert found.norm().item() == pytest.approx(1, rel=1e-6)
        softplus = math.log1p(math.exp(value)) if value < 0 else value + math.log1p(math.exp(-value))
        assert softplus == pytest.approx(cross_entropy, rel=1e-6)  # so that it ranks images alike


class Times(nn.Module):
    """The logits of a model times a constant."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.factor * self.model(x)


@pytest.mark.parametrize("targeted", [False, True])
def test_the_scale_of_two_logits_is_nothing_to_equal_weights(targeted):
    model, (x, y) = convnet(dtype=torch.float64, classes=2).train(), images(8, dtype=torch.float64)
    results = {}
    for loss in ("cross_entropy", "equal_weight"):
        attack = PGDL2(0.5, steps=3, random_start=False, loss=loss, targeted=targeted)
        results[loss] = [attack(Times(model, factor), x, y % 2) for factor in (1, 64)]
    torch.testing.assert_close(*results["equal_weight"], rtol=0, atol=1e-12)
    assert (results["cross_entropy"][0] - results["cross_entropy"][1]).abs().max() > 1e-3


def test_equal_weights_of_large_logits_are_those_of_the_margin():
    model, (x, y) = convnet(dtype=torch.float64).train(), images(8, dtype=torch.float64)
    adv = Grad(0.5, loss="equal_weight")(Times(model, 1e4), x, y)
    torch.testing.assert_close(adv, Grad(0.5, loss="margin")(model, x, y), rtol=0, atol=1e-6)


def test_noise_has_the_standard_deviation_of_each_channel():
    x = torch.full((50, 2, 20, 20), 0.5)
    y = torch.zeros(50, dtype=torch.long)
    noise = GaussianNoise((0.02, 0.1))(nn.Identity(), x, y, generator=seeded()) - x
    torch.testing.assert_close(noise.std((0, 2, 3)), torch.tensor([0.02, 0.1]), rtol=0.03, atol=0)
    assert noise.mean().abs() < 0.002


# Against foolbox ----------------------------------------------------------------------------------

CRITERIA = {False: foolbox.criteria.Misclassification, True: foolbox.criteria.TargetedMisclassification}
FOOLBOX = [
    (GradSign(0.03), foolbox.attacks.LinfFastGradientAttack(), 0.03),
    (Grad(0.3), foolbox.attacks.L2FastGradientAttack(), 0.3),
    (
        BIM(0.03, steps=7, step_size=0.006),
        foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=0.006, steps=7, random_start=False),
        0.03,
    ),
    (
        PGD(0.03, steps=7, step_size=0.006, random_start=False),
        foolbox.attacks.LinfProjectedGradientDescentAttack(abs_stepsize=0.006, steps=7, random_start=False),
        0.03,
    ),
    (
        PGDL2(0.3, steps=7, step_size=0.09, random_start=False),
        foolbox.attacks.L2ProjectedGradientDescentAttack(abs_stepsize=0.09, steps=7, random_start=False),
        0.3,
    ),
]


# Foolbox has no targeted attacks of one step.
@pytest.mark.parametrize(
    ("ours", "theirs", "eps", "targeted"),
    [(*f, False) for f in FOOLBOX] + [(*f, True) for f in FOOLBOX[2:]],
    ids=lambda a: type(a).__name__,
)
def test_same_images_as_foolbox(ours, theirs, eps, targeted):
    model, (x, y) = convnet(), images(8)
    if isinstance(ours, PGDL2 | Grad):
        x = 0.3 + 0.4 * x  # inside of the box: at its walls foolbox gives away some of the ball
    criterion = CRITERIA[targeted](y)
    expected, _, _ = theirs(foolbox.PyTorchModel(model, bounds=(0, 1)), x, criterion, epsilons=eps)
    torch.testing.assert_close(replace(ours, targeted=targeted)(model, x, y), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("targeted", [False, True])
def test_same_distances_as_foolbox_for_carlini_wagner(targeted):
    model, (x, _) = convnet(), images(8)
    y = model(x).argmax(1)
    y = (y + 1) % 5 if targeted else y
    criterion = CRITERIA[targeted](y)
    options = {"binary_search_steps": 5, "confidence": 0.1}
    # Foolbox looks at the images before each step only, this package after the last one too.
    theirs = foolbox.attacks.L2CarliniWagnerAttack(
        steps=16, stepsize=0.05, initial_const=1, abort_early=False, **options
    )
    expected, _, fooled = theirs(foolbox.PyTorchModel(model, bounds=(0, 1)), x, criterion, epsilons=None)
    adv = CarliniWagner(steps=15, lr=0.05, initial_c=1, targeted=targeted, **options)(model, x, y)
    assert fooled.all()
    assert success(model, adv, y, targeted=targeted).all()
    torch.testing.assert_close(adv, expected, rtol=0, atol=2e-5)


# Bounds -------------------------------------------------------------------------------------------


def eps_like(channels):
    radius = st.floats(0, 1)
    return st.one_of(radius, st.tuples(*[radius] * channels))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_ball_and_box(data):
    channels = data.draw(st.integers(1, 3))
    shape = (data.draw(st.integers(1, 3)), channels, *data.draw(st.lists(st.integers(1, 3), max_size=2)))
    generator = seeded(data.draw(st.integers(0, 2**16)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    x = (torch.rand(shape, generator=generator, dtype=dtype) * 2 - 0.5).clamp(0, 1)  # half exactly 0 or 1
    weight = torch.randn(3, x[0].numel(), generator=generator, dtype=dtype)
    model = nn.Sequential(Linear(weight, torch.zeros(3, dtype=dtype)), nn.Tanh())
    y = torch.randint(3, shape[:1], generator=generator)
    eps, step = data.draw(eps_like(channels)), data.draw(st.one_of(st.none(), eps_like(channels)))
    kind = data.draw(st.sampled_from([Grad, GradSign, BIM, PGD, PGDL2]))
    options = {} if kind in (Grad, GradSign) else {"steps": data.draw(st.integers(1, 4)), "step_size": step}
    adv = kind(eps, targeted=data.draw(st.booleans()), **options)(model, x, y, generator=generator)
    assert adv.isfinite().all()
    assert adv.min() >= 0
    assert adv.max() <= 1
    bound = torch.tensor(eps if isinstance(eps, tuple) else [eps] * channels, dtype=torch.float64)
    bound = bound.view(1, -1, *[1] * (x.ndim - 2))
    delta = (adv.double() - x.double()).abs()
    assert (delta <= bound + 1e-6).all()
    if kind in (Grad, PGDL2):
        # 1e-3, as rounding does not shrink with eps.
        length = (delta / bound.clamp_min(1e-3)).flatten(1).norm(dim=1)
        assert (length <= 1 + 1e-3).all()


def test_random_starts_fill_the_ball():
    x, y = torch.full((2000, 1, 2, 1), 0.5), torch.zeros(2000, dtype=torch.long)
    model = Linear(torch.zeros(2, 2), torch.zeros(2))
    square = PGD(0.2, steps=1, step_size=0.0)(model, x, y, generator=seeded()).sub(x).flatten(1)
    assert square.abs().max() > 0.199
    torch.testing.assert_close(square.std(0), torch.full((2,), 0.2 / math.sqrt(3)), rtol=0.05, atol=0)
    disc = PGDL2(0.2, steps=1, step_size=0.0)(model, x, y, generator=seeded()).sub(x)
    disc = disc.flatten(1).norm(dim=1)
    assert disc.max() <= 0.2 + 1e-6
    assert (disc < 0.1).float().mean().item() == pytest.approx(0.25, abs=0.03)  # share of the area


@pytest.mark.parametrize("kind", [Grad, GradSign, BIM, PGD, PGDL2, GaussianNoise])
def test_what_has_eps_0_stays(kind):
    model, (x, y) = convnet(), images()
    assert torch.equal(kind(0.0)(model, x, y), x)
    adv = kind((0.1, 0.0, 0.1))(model, x, y)
    assert torch.equal(adv[:, 1], x[:, 1])
    assert not torch.equal(adv[:, 0], x[:, 0])


# Corners of Carlini-Wagner ------------------------------------------------------------------------


def test_carlini_wagner_with_all_logits_negative():
    # With a mask of 0 instead of -inf, the mask would beat all logits and every image would look fooled.
    model, x, y, _ = two_classes()
    below = Linear(model.weight.detach(), torch.full((2,), -100.0, dtype=x.dtype)).eval()
    attack = CarliniWagner(steps=60, binary_search_steps=5, lr=0.02)
    adv = attack(below, x, y)
    assert (below(x) < -50).all()
    assert success(below, adv, y).all()
    torch.testing.assert_close(adv, attack(model, x, y), atol=1e-6, rtol=0)


def test_carlini_wagner_leaves_an_image_that_it_cannot_fool():
    model, x, y, _ = two_classes()
    sure = Linear(model.weight.detach() * 0, torch.tensor([100.0, 0.0], dtype=x.dtype))
    y = torch.tensor([0, 0, 1, 0, 0])  # the third is wrong from the start
    adv = CarliniWagner()(sure, x, y)
    assert torch.equal(adv[y == 0], x[y == 0])
    torch.testing.assert_close(adv[2], x[2], rtol=0, atol=1e-6)
    assert success(sure, adv, y).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_carlini_wagner_on_pixels_of_exactly_0_and_1(dtype):
    x = torch.tensor([[0.0, 1.0, 0.5], [1.0, 1.0, 0.5], [0.0, 0.0, 0.5]], dtype=dtype).view(3, 3, 1, 1)
    weight, bias = torch.tensor([[0.1, 0.1, 5.0], [0.1, 0.1, -5.0]]), torch.tensor([-4.5, 0.0])
    model = Linear(weight.to(dtype), bias.to(dtype))  # the boundary is where the third pixel is 0.45
    y = torch.zeros(3, dtype=torch.long)
    adv = CarliniWagner(lr=0.1, steps=10, initial_c=1.0)(model, x, y)
    assert adv.isfinite().all()
    assert adv.min() >= 0
    assert adv.max() <= 1
    assert success(model, adv, y).all()
    assert (adv - x)[:, :2].abs().max() < 0.01
    assert (adv[:, 2] < 0.451).all()
    assert (adv[:, 2] > 0.4).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_carlini_wagner_can_leave_0_and_1(dtype):
    x, y = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=dtype), torch.tensor([0, 1])
    model = Linear(torch.tensor([[-5.0, 5.0], [5.0, -5.0]], dtype=dtype), torch.tensor([0, 8.0], dtype=dtype))
    adv = CarliniWagner(lr=0.3, steps=30, initial_c=10)(model, x, y)
    assert success(model, adv, y).all()
    assert (adv[0] - x[0]).abs().min() > 0.05
    torch.testing.assert_close(adv[1], x[1], rtol=0, atol=0.01)


def test_carlini_wagner_leaves_pixels_that_do_not_matter():
    # The rounding error of tanh(atanh(x)) is no gradient for Adam to follow.
    weight = torch.tensor([[5.0, 0.0, 0.0], [-5.0, 0.0, 0.0]])
    model, x = Linear(weight, torch.tensor([-4.5, 0.0])), torch.tensor([[0.5, 0.3, 0.9]])
    adv = CarliniWagner(lr=0.1, initial_c=1)(model, x, torch.tensor([0]))
    assert adv[0, 0] < 0.45
    torch.testing.assert_close(adv[:, 1:], x[:, 1:], rtol=0, atol=1e-5)


def test_carlini_wagner_keeps_the_nearest_of_more_searches():
    model, (x, _) = convnet(), images(8)
    y = model(x).argmax(1)
    few, many = (CarliniWagner(binary_search_steps=n, initial_c=1, lr=0.05)(model, x, y) for n in (1, 6))
    found = success(model, few, y)
    assert found.any()
    assert success(model, many, y)[found].all()
    near, far = ((adv - x).flatten(1).norm(dim=1)[found] for adv in (many, few))
    assert (near <= far).all()
    assert (near < 0.9 * far).any()


# Gradients of 0 and nearly 0 ----------------------------------------------------------------------


@each_attack
@pytest.mark.parametrize("targeted", [False, True])
def test_a_gradient_of_0_gives_no_nan(attack, targeted):
    x, y = images()
    flat = Linear(torch.zeros(5, 108), torch.arange(5.0))
    attack = attack if isinstance(attack, GaussianNoise) else replace(attack, targeted=targeted)
    adv = attack(flat, x, y)
    assert adv.isfinite().all()
    if isinstance(attack, Grad | GradSign) or type(attack) is BIM:
        assert torch.equal(adv, x)


def test_the_l2_step_is_full_where_the_squares_of_the_gradient_underflow():
    _, x, y, uphill = two_classes(dtype=torch.float32)
    model = Linear(1e-30 * two_classes(dtype=torch.float32)[0].weight.detach(), torch.zeros(2))
    expected = 0.1 * uphill / uphill.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(Grad(0.1)(model, x, y) - x, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", ["margin", "equal_weight"])
def test_other_losses_move_where_cross_entropy_has_no_gradient(loss):
    model, x, y, uphill = two_classes(dtype=torch.float32)
    sure = Linear(1e4 * model.weight.detach(), torch.zeros(2))
    assert torch.equal(GradSign(0.01)(sure, x, y), x)
    torch.testing.assert_close(GradSign(0.01, loss=loss)(sure, x, y), x + 0.01 * uphill.sign())
