"""The attacks against closed forms, an independent implementation, and what they promise to leave alone."""

import math
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise

import foolbox
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rnlib.attacks import (
    BIM,
    PGD,
    PGDL2,
    CarliniWagner,
    GaussianNoise,
    Grad,
    GradSign,
    paper_eps,
    paper_suite,
    success,
)
from rnlib.models import resnet
from rnlib.modes import use_statistics

ALL = [
    GaussianNoise(0.1),
    Grad(0.1),
    GradSign(0.1),
    BIM(0.1, steps=3),
    PGD(0.1, steps=3),
    PGD(0.1, steps=2, restarts=3),
    PGDL2(0.1, steps=3),
    BIM(0.1, steps=3, loss="margin"),
    CarliniWagner(steps=3, initial_c=10, lr=0.1),
]
TARGETED = [replace(a, targeted=True) for a in ALL[1:]]
each_attack = pytest.mark.parametrize("attack", ALL, ids=repr)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """Logits x.flatten(1) @ weight.T + bias: every attack on it has a closed form."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        return F.linear(x.flatten(1), self.weight, self.bias)


def two_classes(shape=(2, 3, 3), dtype=torch.float64):
    """A two-class linear model, images in [0.4, 0.6] and the classes that it gives them."""
    weight = torch.randn(2, math.prod(shape), generator=seeded(1), dtype=dtype)
    x = 0.4 + 0.2 * torch.rand(5, *shape, generator=seeded(2), dtype=dtype)
    model = Linear(weight, torch.zeros(2, dtype=dtype)).eval()
    y = model(x).argmax(1)
    uphill = (weight[1 - y] - weight[y]).view_as(x)  # gradient of the margin, per image
    return model, x, y, uphill.detach()


def convnet(channels=3, dtype=torch.float32, classes=5):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(channels, 6, 3),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, classes),
    ).to(dtype)
    with torch.no_grad():
        model(torch.rand(32, channels, 6, 6, dtype=dtype))  # running statistics other than 0 and 1
        model[-1].weight.mul_(5)
    return model.eval()


def images(n=4, channels=3, dtype=torch.float32, seed=4):
    return (
        torch.rand(n, channels, 6, 6, generator=seeded(seed), dtype=torch.float64).to(dtype),
        torch.randint(5, (n,), generator=seeded(seed)),
    )


def margins(model, x, y):
    logits = model(x).detach()
    others = logits.clone()
    others[torch.arange(len(y)), y] = -math.inf
    return others.max(1).values - logits[torch.arange(len(y)), y]


# Closed forms -------------------------------------------------------------------------------------

EPS = torch.tensor([0.02, 0.05], dtype=torch.float64).view(1, 2, 1, 1)
EPS_TUPLE = (0.02, 0.05)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
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


@pytest.mark.parametrize(
    "attack", [Grad(EPS_TUPLE), PGDL2(EPS_TUPLE, steps=200), PGDL2(EPS_TUPLE, random_start=False)], ids=repr
)
def test_l2_optimum_of_a_linear_model_in_the_space_divided_by_eps(attack):
    model, x, y, uphill = two_classes()
    direction = uphill * EPS
    expected = x + EPS * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    adv = attack(model, x, y, generator=seeded())
    torch.testing.assert_close(adv, expected, rtol=0, atol=1e-6)


def test_l2_with_one_eps_is_the_usual_ball():
    model, x, y, uphill = two_classes()
    expected = x + 0.1 * uphill / uphill.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    for attack in (Grad(0.1), PGDL2(0.1, random_start=False), PGDL2((0.1, 0.1), random_start=False)):
        torch.testing.assert_close(attack(model, x, y), expected, rtol=0, atol=1e-9)


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


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_gradients_are_those_of_the_summed_loss_under_batch_statistics(loss):
    model, (x, y) = convnet(dtype=torch.float64).train(), images(dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    if loss == "margin":
        others = logits.masked_fill(F.one_hot(y, 5).bool(), -math.inf)
        summed = (others.amax(1) - logits.gather(1, y[:, None])[:, 0]).sum()
    else:
        summed = F.cross_entropy(logits, y, reduction="sum")
    grad = torch.autograd.grad(summed, leaf)[0]
    by_sign = GradSign(0.01, loss=loss)(model, x, y)
    torch.testing.assert_close(by_sign, (x + 0.01 * grad.sign()).clamp(0, 1))
    norm = grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(Grad(0.01, loss=loss)(model, x, y), (x + 0.01 * grad / norm).clamp(0, 1))


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
    radius = st.floats(0, 1.5)
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


@pytest.mark.parametrize("eps", [0.0, (0.0, 0.0, 0.0)])
@pytest.mark.parametrize("kind", [Grad, GradSign, BIM, PGD, PGDL2, GaussianNoise])
def test_eps_0_is_the_identity(kind, eps):
    model, (x, y) = convnet(), images()
    assert torch.equal(kind(eps)(model, x, y), x)


@pytest.mark.parametrize("kind", [Grad, GradSign, BIM, PGD, PGDL2, GaussianNoise])
def test_a_channel_with_eps_0_stays(kind):
    model, (x, y) = convnet(), images()
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


# What the model and its batch do ------------------------------------------------------------------


def test_images_of_a_batch_attack_together_under_batch_statistics_only():
    model, (x, y) = convnet(), images()
    mates, mate_labels = x.clone(), y.clone()
    mates[1:], mate_labels[1:] = images(seed=9)[0][1:], images(seed=9)[1][1:]
    for attack in (BIM(0.05), PGDL2(0.5, random_start=False), CarliniWagner(initial_c=10, lr=0.05)):
        model.eval()
        alone, among = attack(model, x, y)[0], attack(model, mates, mate_labels)[0]
        torch.testing.assert_close(alone, among, atol=1e-5, rtol=0)
        model.train()
        assert (attack(model, x, y)[0] - attack(model, mates, mate_labels)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("attack", TARGETED, ids=repr)
def test_targeted_attacks_approach_their_class_and_others_leave_it(attack):
    model, (x, y) = convnet(), images(8)
    attack = replace(attack, steps=20) if hasattr(attack, "steps") else replace(attack, eps=0.02)

    def losses(images):
        return F.cross_entropy(model(images), y, reduction="none")

    before, towards = losses(x), losses(attack(model, x, y, generator=seeded()))
    away = losses(replace(attack, targeted=False)(model, x, y, generator=seeded()))
    if isinstance(attack, CarliniWagner):  # stops where it has reached its aim, and may never
        assert success(model, attack(model, x, y), y, targeted=True).sum() > (model(x).argmax(1) == y).sum()
        assert towards.sum() < before.sum() < away.sum()
    else:
        assert (towards < before).all()
        assert (before < away).all()


def test_success():
    model, (x, y) = convnet(), images(8)
    predicted = model(x).argmax(1)
    assert success(model, x, y).tolist() == (predicted != y).tolist()
    assert success(model, x, y, targeted=True).tolist() == (predicted == y).tolist()
    model.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    success(model, x, y)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("kind", [PGD, PGDL2])
@pytest.mark.parametrize("targeted", [False, True])
def test_restarts_are_never_worse(kind, loss, targeted):
    model, (x, y) = convnet(), images(16)
    attack = kind(0.1, steps=2, step_size=0.02, loss=loss, targeted=targeted)
    sign = -1 if targeted else 1

    def outcome(adv):
        per_image = F.cross_entropy(model(adv), y, reduction="none").detach()
        value = margins(model, adv, y) if loss == "margin" else per_image
        return success(model, adv, y, targeted), sign * value

    outcomes = [outcome(replace(attack, restarts=n)(model, x, y, generator=seeded())) for n in (1, 2, 4, 6)]
    for (once, loss_once), (more, loss_more) in pairwise(outcomes):
        assert (more | ~once).all()
        same = more == once
        assert (loss_more >= loss_once - 1e-5)[same].all()
    assert (outcomes[-1][1] > outcomes[0][1] + 1e-4).any()


class Valley(nn.Module):
    """Of one pixel: below 0.5 class 0 just loses, above it wins at a higher cross-entropy."""

    def forward(self, x):
        p = x.flatten(1)[:, :1]
        low, high = torch.tensor([0.45, 0.55, 1e-6]).log(), torch.tensor([0.40, 0.30, 0.30]).log()
        return torch.where(p < 0.5, low, high) + 0 * p


def test_restarts_prefer_a_fooled_image_to_a_higher_loss():
    x, y = torch.full((20, 1), 0.5), torch.zeros(20, dtype=torch.long)
    attack = PGD(0.5, steps=1, step_size=0.0)
    assert 0 < success(Valley(), attack(Valley(), x, y, generator=seeded()), y).sum() < 20
    assert success(Valley(), replace(attack, restarts=20)(Valley(), x, y, generator=seeded()), y).all()


# Nothing is left behind ---------------------------------------------------------------------------


class Rebinding(nn.Module):
    """Assigns its buffer anew instead of writing into it, fills an unset one, and fails when told to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running", torch.zeros(()))
        self.register_buffer("unset", None)
        self.fail_after = math.inf
        self.seen_trainable = []

    def forward(self, x):
        self.seen_trainable.append(self.owner[0].weight.requires_grad)
        if self.fail_after <= 0:
            raise ArithmeticError("told to fail")
        self.fail_after -= 1
        if self.training:
            self.running = 0.9 * self.running + x.detach().mean()
            self.unset = x.detach().mean()
        return x


def watched(mode):
    """A model with a frozen layer, gradients, modules of both modes, and a module that rebinds buffers."""
    model, probe = convnet(), Rebinding()
    model.insert(1, probe)
    object.__setattr__(probe, "owner", model)
    F.cross_entropy(model(images()[0]), images()[1]).backward()
    model[-1].requires_grad_(False)
    model.train(mode == "train")
    if mode == "mixed":
        model[5].train()
    probe.seen_trainable.clear()
    return model, probe


def snapshot(model):
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    return (
        [t.detach().clone() for t in tensors],
        [id(t) for t in tensors],
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [b is None for m in model.modules() for b in m._buffers.values()],
    )


def assert_untouched(model, before):
    after = snapshot(model)
    assert len(after[0]) == len(before[0])
    assert all(torch.equal(a, b) for a, b in zip(after[0], before[0], strict=True))
    assert after[1:] == before[1:]


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@each_attack
def test_model_and_images_are_untouched(attack, mode):
    model, probe = watched(mode)
    x, y = images()
    x.requires_grad_()
    x_copy, y_copy, before = x.detach().clone(), y.clone(), snapshot(model)
    adv = attack(model, x, y)
    assert_untouched(model, before)
    assert not any(probe.seen_trainable)  # nor were gradients of parameters computed
    assert not adv.requires_grad
    assert adv.data_ptr() != x.data_ptr()
    assert torch.equal(x.detach(), x_copy)
    assert torch.equal(y, y_copy)
    assert x.requires_grad
    assert x.grad is None


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize("attack", ALL[1:], ids=repr)
def test_model_is_untouched_after_an_exception(attack, mode):
    model, probe = watched(mode)
    before = snapshot(model)
    probe.fail_after = 0 if isinstance(attack, Grad | GradSign) else 1
    with pytest.raises(ArithmeticError, match="told to fail"):
        attack(model, *images())
    assert_untouched(model, before)


def test_update_buffers_counts_every_forward_pass():
    model, (x, y) = convnet().train(), images()
    mean = model[1].running_mean.clone()
    model[1].num_batches_tracked.zero_()
    PGD(0.1, steps=10)(model, x, y, update_buffers=True)
    assert model[1].num_batches_tracked == 10
    assert not torch.equal(model[1].running_mean, mean)
    assert all(p.requires_grad for p in model.parameters())
    model.eval()
    PGD(0.1, steps=10)(model, x, y, update_buffers=True)
    assert model[1].num_batches_tracked == 10


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
@pytest.mark.parametrize("statistics", ["tracked", "batch"])
@each_attack
def test_on_the_models_of_this_package(attack, norm, statistics):
    torch.manual_seed(0)
    model = resnet(8, norm, width=4).eval()
    x, y = torch.rand(3, 3, 8, 8, generator=seeded()), torch.tensor([0, 4, 9])
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with use_statistics(model, statistics):
        adv = attack(model, x, y)
    assert adv.isfinite().all()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@each_attack
def test_works_where_gradients_are_switched_off(attack, context):
    model, (x, y) = convnet(), images()
    expected = attack(model, x, y, generator=seeded())
    with context():
        adv = attack(model, x.clone(), y.clone(), generator=seeded())
        assert not torch.is_grad_enabled()
    assert torch.equal(adv, expected)
    assert (adv != x).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@each_attack
def test_dtype_and_memory_format_are_kept(attack, layout, dtype):
    model, (x, y) = convnet(dtype=dtype), images(dtype=dtype)
    model, given = model.to(memory_format=layout), x.to(memory_format=layout)
    adv = attack(model, given, y, generator=seeded())
    assert adv.dtype == dtype
    assert adv.stride() == given.stride()
    assert adv.shape == x.shape
    assert adv.isfinite().all()
    if dtype == torch.float64:  # the layout changes nothing else, random numbers included
        same = attack(convnet(dtype=dtype), x, y, generator=seeded())
        torch.testing.assert_close(adv, same, atol=1e-9, rtol=0)


@pytest.mark.parametrize("attack", [GaussianNoise(0.1), PGD(0.1), PGDL2(0.5), PGD(0.1, restarts=2)], ids=repr)
def test_randomness_comes_from_the_generator(attack):
    model, (x, y) = convnet(), images()
    state = torch.get_rng_state()
    first, again, other = (attack(model, x, y, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    unseeded = attack(model, x, y)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(attack(model, x, y), unseeded)


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


def test_the_margin_loss_moves_where_cross_entropy_has_no_gradient():
    model, x, y, uphill = two_classes(dtype=torch.float32)
    sure = Linear(1e4 * model.weight.detach(), torch.zeros(2))
    assert torch.equal(GradSign(0.01)(sure, x, y), x)
    torch.testing.assert_close(GradSign(0.01, loss="margin")(sure, x, y), x + 0.01 * uphill.sign())


# The paper's attacks ------------------------------------------------------------------------------


def test_paper_eps_is_an_eps_on_normalised_images():
    assert paper_eps("cifar10") == pytest.approx((0.03 * 0.2023, 0.03 * 0.1994, 0.03 * 0.2010))
    assert paper_eps("fashion-mnist", 0.5) == pytest.approx((0.5 * 0.3530,))
    with pytest.raises(ValueError, match=r"cifar11.*cifar10"):
        paper_eps("cifar11")


def test_paper_suite():
    suite = paper_suite("cifar10")
    assert list(suite) == ["noise", "grad", "grad_sign", "bim_linf", "pgd_linf", "pgd_l2", "cw_l2"]
    eps = paper_eps("cifar10")
    assert suite["noise"] == GaussianNoise(paper_eps("cifar10", 0.5))
    assert (suite["grad"], suite["grad_sign"]) == (Grad(eps), GradSign(eps))
    assert suite["bim_linf"] == BIM(eps, steps=20, step_size=None)
    assert suite["pgd_linf"] == PGD(eps, steps=20, step_size=None, random_start=True, restarts=1)
    assert suite["pgd_l2"] == PGDL2(eps, steps=20)
    assert suite["cw_l2"] == CarliniWagner(steps=20, binary_search_steps=3, initial_c=0.1, lr=0.01)
    other = paper_suite("cifar10", 0.1, noise_std=0.1)
    assert other["noise"].std == other["grad"].eps == other["pgd_l2"].eps == paper_eps("cifar10", 0.1)
    model, (x, y) = convnet(), images()
    for attack in suite.values():
        assert attack(model, x, y).shape == x.shape
    assert [type(a) for a in paper_suite("fashion-mnist").values()] == [type(a) for a in suite.values()]


def test_attacks_are_values():
    assert PGD(0.1) == PGD(eps=0.1)
    assert len({PGD(0.1), PGD(0.1), PGDL2(0.1), BIM(0.1)}) == 3
    assert repr(GradSign((0.1, 0.2))) == "GradSign(eps=(0.1, 0.2), targeted=False, loss='cross_entropy')"
    with pytest.raises(FrozenInstanceError):
        PGD(0.1).eps = 0.2
    with pytest.raises(TypeError):
        PGD(0.1, 10)  # options go by name


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PGD(-0.1), ValueError, "eps is -0.1"),
        (lambda: GradSign((0.1, math.nan)), ValueError, "eps is"),
        (lambda: Grad(math.inf), ValueError, "eps is inf"),
        (lambda: BIM([0.1, 0.1]), TypeError, "tuple"),
        (lambda: BIM(()), TypeError, "tuple"),
        (lambda: BIM(True), TypeError, "float"),
        (lambda: BIM("0.1"), TypeError, "eps is '0.1'"),
        (lambda: GaussianNoise(-1), ValueError, "std is -1"),
        (lambda: BIM(0.1, steps=0), ValueError, "steps is 0"),
        (lambda: BIM(0.1, steps=1.5), TypeError, "steps is 1.5"),
        (lambda: BIM(0.1, step_size=-1.0), ValueError, "step_size"),
        (lambda: BIM(0.1, loss="hinge"), ValueError, r"'hinge'.*cross_entropy, margin"),
        (lambda: PGD(0.1, restarts=0), ValueError, "restarts is 0"),
        (lambda: PGD(0.1, restarts=2, random_start=False), ValueError, "random_start=True"),
        (lambda: CarliniWagner(steps=0), ValueError, "steps"),
        (lambda: CarliniWagner(binary_search_steps=0), ValueError, "binary_search_steps"),
        (lambda: CarliniWagner(confidence=-1), ValueError, "confidence is -1"),
        (lambda: CarliniWagner(confidence=math.nan), ValueError, "confidence is nan"),
        (lambda: CarliniWagner(lr=0), ValueError, "lr is 0"),
        (lambda: CarliniWagner(initial_c=math.inf), ValueError, "initial_c is inf"),
    ],
)
def test_bad_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


X, Y = images()
MODEL = convnet()


@pytest.mark.parametrize(
    ("model", "x", "y", "error", "message"),
    [
        (len, X, Y, TypeError, "Module"),
        (MODEL, (X * 255).byte(), Y, TypeError, "uint8.*to_float"),
        (MODEL, X.numpy(), Y, TypeError, "ndarray"),
        (MODEL, X, Y.int(), TypeError, r"int32.*y\.long\(\)"),
        (MODEL, X, Y.tolist(), TypeError, "list"),
        (MODEL, X[:0], Y[:0], ValueError, "not empty"),
        (MODEL, X[:, 0, 0, 0], Y, ValueError, "shape"),
        (MODEL, X, Y[:2], ValueError, r"\(2,\).*\(4,\)"),
        (MODEL, X, Y[:, None], ValueError, r"\(4, 1\)"),
        (MODEL, X * 2 - 0.5, Y, ValueError, r"\[0, 1\]"),
        (MODEL, X + 0.9, Y, ValueError, r"\[0, 1\]"),
        (MODEL, X - 0.5, Y, ValueError, r"\[0, 1\]"),
        (MODEL, X * math.nan, Y, ValueError, r"\[0, 1\]"),
        (MODEL, X, Y - 9, ValueError, "label -"),
        (MODEL, X, torch.tensor([0, 1, 5, 2]), ValueError, "labels up to 5"),
        (nn.Flatten(0), X, Y, ValueError, r"\(432,\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(108, 1)), X, Y * 0, ValueError, r"\(4, 1\)"),
    ],
)
def test_bad_batches(model, x, y, error, message):
    for attack in (PGD(0.1), CarliniWagner()):
        with pytest.raises(error, match=message):
            attack(model, x, y)


def test_eps_of_another_number_of_channels():
    for attack in (PGD((0.1, 0.1)), BIM(0.1, step_size=(0.1, 0.1)), GaussianNoise((0.1,)), Grad((0.1,) * 4)):
        with pytest.raises(ValueError, match="3 channels"):
            attack(MODEL, X, Y)


def test_a_model_that_cuts_the_gradient():
    class Cut(nn.Module):
        def forward(self, x):
            return MODEL(x.detach()).detach()

    for attack in (BIM(0.1), CarliniWagner()):
        with pytest.raises(ValueError, match="differentiable"):
            attack(Cut(), X, Y)
