"""What every attack promises: whom it attacks, what it leaves alone, its types, randomness and errors."""

import math
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import ALL, TARGETED, convnet, each_attack, images, margins, seeded

from rnlib.attacks import (
    BIM,
    PGD,
    PGDL2,
    Attack,
    CarliniWagner,
    GaussianNoise,
    Grad,
    GradSign,
    paper_eps,
    paper_suite,
    success,
)

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


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "equal_weight"])
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
        (lambda: PGD(8), ValueError, r"eps is 8, .* in \[0, 1\]: divide steps of 8 bits by 255"),
        (lambda: BIM(0.1, step_size=2), ValueError, "step_size is 2"),
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
        (MODEL, X, nn.functional.one_hot(Y).float(), ValueError, r"argmax\(1\)"),
        (MODEL, X, nn.functional.one_hot(Y), ValueError, r"argmax\(1\)"),
        (MODEL, X[0], Y[0], ValueError, r"x\[None\]"),
        (MODEL, X, Y.tolist(), TypeError, "list"),
        (MODEL, X[:0], Y[:0], ValueError, "not empty"),
        (MODEL, X[:, 0, 0, 0], Y, ValueError, r"\(N, C, \.\.\.\)"),
        (MODEL, X, Y[:2], ValueError, r"int64 \(4,\), got torch.int64 \(2,\): there is one for each"),
        (MODEL, X, Y[:, None], ValueError, r"\(4, 1\): give y\[:, 0\]"),
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


def test_an_attack_has_to_say_how_it_perturbs():
    class Empty(Attack):
        pass

    with pytest.raises(NotImplementedError, match="Empty does not define _perturb"):
        Empty()(MODEL, X, Y)
