"""Switches, probes and replacements of statistics, against plain tensor operations and differences."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import rnlib
from rnlib import (
    PGD,
    BatchNorm,
    Detached,
    MinMaxNorm,
    Norm,
    RobustNorm,
    gradient_shares,
    resnet,
    statistics_modes,
    track,
    use_statistics,
)
from rnlib.statistics import evaluation_mode, norm_layers


def images(n=12, seed=0):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def small(norm="batch_norm", **options):
    torch.manual_seed(0)
    norm_layer = rnlib.make_norm(norm, **options)
    first = [nn.Conv2d(3, 4, 3), norm_layer(4), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*first, nn.Conv2d(4, 2, 3), norm_layer(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


# Switches -----------------------------------------------------------------------------------------


def switches(model):
    return [(m.statistics, m.tracking) for m in model.modules() if isinstance(m, Norm)]


def test_switches_nest_and_restore_every_layer_after_exceptions():
    model = nn.Sequential(BatchNorm(2), nn.Sequential(RobustNorm(2), nn.ReLU()), MinMaxNorm(2))
    model[0].statistics, model[1][0].tracking = "batch", False
    before = switches(model)
    with use_statistics(model, "batch") as same:
        assert same is model
        with use_statistics(model, "tracked"), track(model, False):
            assert switches(model) == [("tracked", False)] * 3
            with use_statistics(model, "none"):
                assert switches(model) == [("tracked", False)] * 3
        assert switches(model) == [("batch", True), ("batch", False), ("batch", True)]
    assert switches(model) == before
    for switch, value in ((use_statistics, "batch"), (use_statistics, "none"), (track, False)):
        with pytest.raises(KeyError), switch(model, value):
            raise KeyError
        assert switches(model) == before
    model.eval().train()
    assert switches(model) == before


def test_evaluation_mode_gives_every_layer_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(BatchNorm(2), nn.ReLU()))
    model[1].eval()
    before = [m.training for m in model.modules()]
    with evaluation_mode(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == before
    with pytest.raises(KeyError), evaluation_mode(model):
        raise KeyError
    assert [m.training for m in model.modules()] == before


@pytest.mark.parametrize("norm", ["no_norm", "group_norm"])
def test_switches_do_nothing_to_models_without_batch_statistics(norm):
    model, x = resnet(8, norm, width=8).eval(), images(2)
    with torch.no_grad(), use_statistics(model, "batch"), track(model, False):
        inside = model(x)
    torch.testing.assert_close(inside, model(x), rtol=0, atol=0)
    assert statistics_modes(model) == ("none",)
    assert statistics_modes(small()) == ("tracked", "batch")


@pytest.mark.parametrize(("switch", "value"), [(use_statistics, "batch"), (track, False)])
@pytest.mark.parametrize("native", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_native_layers_cannot_be_switched_and_the_error_says_what_to_do(switch, value, native):
    model = nn.Sequential(BatchNorm(2), nn.Sequential(native(2)))
    message = r"layer '1\.0' is a native BatchNorm.*rnlib\.convert_norms"
    with pytest.raises(ValueError, match=message), switch(model, value):
        pass
    assert switches(model) == [("tracked", True)]


def test_unknown_statistics():
    message = "'bacth'.*'tracked', 'batch'"
    with pytest.raises(ValueError, match=message), use_statistics(BatchNorm(2), "bacth"):
        pass


# Probes -------------------------------------------------------------------------------------------


def test_batch_statistics_are_those_at_the_input_of_each_layer():
    model, x = small().train(), images()
    found = rnlib.batch_statistics(model, x)
    first = model[0](x)
    torch.testing.assert_close(found["1"], (first.mean((0, 2, 3)), first.var((0, 2, 3))))
    second = model[4](torch.relu(nn.functional.batch_norm(first, None, None, training=True)))
    torch.testing.assert_close(found["5"], (second.mean((0, 2, 3)), second.var((0, 2, 3))))
    assert all(layer.training for layer in model.modules())
    assert model[1].num_batches_tracked == 0


def test_statistics_mode_decides_what_deeper_layers_see():
    model, x = small().eval(), images()
    tracked = rnlib.batch_statistics(model, x, statistics="tracked")
    second = model[4](torch.relu(model[0](x) / (1 + 1e-5) ** 0.5))  # a new layer has mean 0, variance 1
    torch.testing.assert_close(tracked["5"], (second.mean((0, 2, 3)), second.var((0, 2, 3))))
    assert model[1].statistics == "tracked"


def test_tracked_statistics_are_a_copy():
    model = small("robust_norm")
    tracked = rnlib.tracked_statistics(model)
    model.train()(images())
    assert torch.equal(tracked["1"][1], torch.ones(4))
    assert not torch.equal(model[1].running_range, torch.ones(4))


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm", "min_max_norm"])
def test_recalibration_averages_all_batches_alike(norm):
    model = small(norm)
    batches = [images(seed=seed) + seed for seed in range(5)]
    model.train()(images(seed=9))  # something to forget
    model.eval()
    expected = [rnlib.batch_statistics(model, x)["1"] for x in batches]
    rnlib.recalibrate(model, batches)
    for index, running in enumerate(model[1].running_statistics):
        torch.testing.assert_close(running, torch.stack([one[index] for one in expected]).mean(0))
    assert model[1].num_batches_tracked == 5
    assert model[1].momentum == 0.1
    assert not any(layer.training for layer in model.modules())


def test_recalibrated_on_one_batch_both_modes_agree():
    model, x = small("robust_norm").eval(), images()
    rnlib.recalibrate(model, [x])
    tracked = model(x)
    with use_statistics(model, "batch"):
        torch.testing.assert_close(model(x), tracked)


def interrupted():
    yield images()
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (list, ValueError, "at least one"),
        (lambda: [images(), (images(), torch.arange(12))], TypeError, "holds a tuple, it must hold tensors"),
        (lambda: [images(), images()[:, :1]], RuntimeError, "3 channels"),
        (interrupted, KeyboardInterrupt, None),
    ],
    ids=["nothing", "pairs", "grey", "interrupted"],
)
def test_recalibration_that_fails_changes_nothing(given, error, message):
    model = small().train()
    model(images())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        rnlib.recalibrate(model, given())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(layer.training for layer in model.modules())
    assert model[1].momentum == 0.1


def test_distance_is_in_units_of_the_reference_spread():
    model = small()
    reference = {"1": (torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([4.0, 4.0, 1.0, 1.0]))}
    other = {"1": (torch.tensor([2.0, 1.0, 2.0, 2.0]), torch.tensor([4.0, 16.0, 0.25, 1.0]))}
    shift, ratio = rnlib.distance(model, other, reference)["1"]
    torch.testing.assert_close(shift, torch.tensor([1.0, 0.0, 0.0, -1.0]))
    torch.testing.assert_close(ratio, torch.tensor([0.0, 1.0, -1.0, 0.0]))  # of standard deviations
    model = small("robust_norm")
    shift, ratio = rnlib.distance(model, other, reference)["1"]
    torch.testing.assert_close(shift, torch.tensor([0.5, 0.0, 0.0, -1.0]))
    torch.testing.assert_close(ratio, torch.tensor([0.0, 2.0, -2.0, 0.0]))  # of ranges


@pytest.mark.parametrize(
    ("model", "fix"),
    [
        (nn.Sequential(nn.BatchNorm2d(3)), "convert_norms"),
        (resnet(8, "no_norm", width=2), r"subclass of rnlib\.Norm$"),
    ],
)
def test_a_model_without_norms_of_rnlib_is_refused_with_the_fix(model, fix):
    with pytest.raises(ValueError, match=fix):
        norm_layers(model)


# Detached -----------------------------------------------------------------------------------------


def network(norm="batch_norm"):
    torch.manual_seed(0)
    model = resnet(8, norm, width=4).eval()
    return model, torch.rand(20, 3, 16, 16), torch.randint(10, (20,))


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
def test_answers_are_those_of_batch_statistics(norm):
    model, x, _ = network(norm)
    with use_statistics(model, "batch"), torch.no_grad():
        wanted = model(x)
    torch.testing.assert_close(Detached(model)(x).detach(), wanted, rtol=0, atol=0.02)
    assert (Detached(model)(x).argmax(1) == wanted.argmax(1)).all()


def test_the_gradient_is_that_of_a_fixed_scale():
    """For one norm layer: y = w (x - mean) / sigma + b, so that dy / dx = w / sigma."""
    norm = BatchNorm(3)
    nn.init.uniform_(norm.weight)
    x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    Detached(norm.double())(x).sum().backward()
    wanted = norm.weight.detach() / (x.detach().var(0) + norm.eps).sqrt()
    torch.testing.assert_close(x.grad, wanted.expand(8, 3))


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
def test_images_do_not_reach_each_other_by_the_gradient(norm):
    model, x, _ = network(norm)

    def reached(classifier):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(classifier(leaf)[0].norm(), leaf)
        return (gradient[1:] != 0).any()

    with use_statistics(model, "batch"):
        assert reached(model)
        assert not reached(Detached(model))


def test_statistics_follow_the_batch_and_the_model_stays_as_it_was():
    model, x, y = network()
    before = copy.deepcopy(model.state_dict())
    detached = Detached(model)
    first, second = detached(x), detached(x / 2 + 0.3)
    torch.testing.assert_close(detached(x), first)
    assert not torch.allclose(first, second, atol=0.1)
    PGD(0.1, steps=3)(detached, x, y)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_without_norms_is_refused():
    with pytest.raises(ValueError, match="no norm of rnlib"):
        Detached(nn.Linear(2, 2))


# Shares of the gradient ---------------------------------------------------------------------------


def tiny(norm="batch_norm", dtype=torch.float64):
    """Two layers around a norm, four images of eight pixels, and their labels."""
    torch.manual_seed(1)
    norm = rnlib.make_norm(norm)(4)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), norm, nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).to(dtype)
    return model.eval(), torch.rand(4, 2, 2, 2, dtype=dtype), torch.tensor([0, 2, 1, 1])


def losses_by_differences(model, x, y, size=1e-6):
    """Entry (j, i, k) is the derivative of image j's cross-entropy by pixel k of image i."""
    result = torch.zeros(len(x), len(x), x[0].numel(), dtype=x.dtype)
    for i in range(len(x)):
        for k in range(x[0].numel()):
            ends = []
            for step in (size, -size):
                moved = x.clone()
                moved[i].view(-1)[k] += step
                ends.append(F.cross_entropy(model(moved), y, reduction="none").detach())
            result[:, i, k] = (ends[0] - ends[1]) / (2 * size)
    return result


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
def test_gradient_shares_are_those_of_finite_differences(norm):
    model, x, y = tiny(norm)
    found = gradient_shares(model, x, y)
    with use_statistics(model, "batch"):
        by_loss = losses_by_differences(model, x, y)
    own = by_loss.diagonal().T
    others = by_loss.sum(0) - own
    close = {"rtol": 1e-5, "atol": 1e-8}
    torch.testing.assert_close(found.own, own.norm(dim=1), **close)
    torch.testing.assert_close(found.others, others.norm(dim=1), **close)
    torch.testing.assert_close(found.ratio, others.norm(dim=1) / own.norm(dim=1), **close)
    torch.testing.assert_close(found.cosine, F.cosine_similarity(own, others), **close)
    agreement = (own.sign() == by_loss.sum(0).sign()).double().mean(1)
    torch.testing.assert_close(found.agreement, agreement, **close)
    assert (found.others > 0).all()
    assert (agreement < 1).any()


@pytest.mark.parametrize("norm", ["batch_norm", "robust_norm"])
def test_with_tracked_statistics_the_gradient_is_the_own_one(norm):
    model, x, y = tiny(norm)
    found = gradient_shares(model, x, y, "tracked")
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(leaf), y, reduction="sum").backward()
    torch.testing.assert_close(found.own, leaf.grad.flatten(1).norm(dim=1))
    for share, value in ((found.others, 0), (found.ratio, 0), (found.cosine, 0), (found.agreement, 1)):
        assert torch.equal(share, torch.full((4,), value, dtype=torch.float64))


def test_gradients_of_a_sure_model_are_not_lost():
    """Of logits w x and 0 the own gradient is (1 - p) w, here with p from 1 - 1e-13 to 1 - 1e-87."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[200.0], [0.0]]).expand(2, 4))
    x = torch.tensor([0.0375, 0.125, 0.25]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    found = gradient_shares(model, x, torch.zeros(3, dtype=torch.long), "none")
    wanted = torch.exp(-200 * x.double().flatten(1).sum(1)) * 400  # the length of (200, 200, 200, 200) is 400
    torch.testing.assert_close(found.own, wanted, rtol=1e-5, atol=0)
    assert not found.others.any()


def test_shares_leave_the_model_alone_and_work_in_inference_mode():
    model, x, y = tiny(dtype=torch.float32)
    wanted = gradient_shares(model, x, y)
    model.train()[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        found = gradient_shares(model, x.clone(), y.clone())
    torch.testing.assert_close(vars(found), vars(wanted), rtol=0, atol=0)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(layer.training for layer in model.modules())
    assert switches(model) == [("tracked", True)]
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in model.parameters())


def test_shares_want_a_label_for_each_image():
    model, x, y = tiny()
    with pytest.raises(ValueError, match=r"y must be int64 \(4,\), got torch.int64 \(3,\)"):
        gradient_shares(model, x, y[:3])
    with pytest.raises(ValueError, match="'bacth'"):
        gradient_shares(model, x, y, "bacth")
