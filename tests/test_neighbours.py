"""Attacks among neighbours: who changes, who is hit, and that tracked statistics let nothing through."""

import math

import pytest
import torch

from rnlib import PGD, Among, attack_neighbours, resnet, use_statistics

EPS = 0.1


@pytest.fixture
def setup():
    torch.manual_seed(0)
    model = resnet(8, "batch_norm", width=4, num_classes=3)
    model(torch.rand(32, 3, 8, 8))
    return model.eval(), torch.rand(10, 3, 8, 8), torch.randint(3, (10,))


def test_among_answers_for_its_images_in_the_whole_batch(setup):
    model, x, _ = setup
    with use_statistics(model, "batch"), torch.no_grad():
        whole = model(x)
        torch.testing.assert_close(Among(model, x[4:])(x[:4]), whole[:4])
        assert not torch.allclose(whole[:4], model(x[:4]))


def test_among_leaves_the_model_in_its_modes(setup):
    model, x, _ = setup
    model.train()
    model[2].eval()  # a frozen norm
    before = [layer.training for layer in model.modules()]
    assert Among(model, x).training
    assert [layer.training for layer in model.modules()] == before


def test_neighbours_move_with_the_model_and_are_not_saved(setup):
    model, x, _ = setup
    among = Among(model, x[4:]).to("meta")
    assert among(x[:4].to("meta")).device.type == "meta"
    assert set(among.state_dict()) == {f"model.{key}" for key in model.state_dict()}


@pytest.mark.parametrize("training", [False, True])
def test_attacks_on_neighbours_and_among_them_work_in_inference_mode(setup, training):
    model, x, y = setup
    model.train(training)
    attack = PGD(EPS, steps=2, random_start=False)
    wanted = [attack(Among(model, x[4:]), x[:4], y[:4]), attack_neighbours(model, x, y, 5, EPS, steps=2)]
    with torch.inference_mode():
        x, y = x.clone(), y.clone()
        found = [attack(Among(model, x[4:]), x[:4], y[:4]), attack_neighbours(model, x, y, 5, EPS, steps=2)]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_an_attack_among_neighbours_is_the_attack_with_their_share_of_the_gradient_left_out(setup):
    model, x, y = setup
    with use_statistics(model, "batch"):
        adv = PGD(EPS, steps=1, random_start=False)(Among(model, x[4:]), x[:4], y[:4])
        leaf = x.clone().requires_grad_()
        torch.nn.functional.cross_entropy(model(leaf)[:4], y[:4], reduction="sum").backward()
    wanted = (x[:4] + EPS / 10 * leaf.grad[:4].sign()).clamp(0, 1)
    torch.testing.assert_close(adv, wanted)


def test_only_the_attacked_images_change_and_the_others_are_hit(setup):
    model, x, y = setup
    with use_statistics(model, "batch"):
        adv = attack_neighbours(model, x, y, 5, EPS, steps=10)
        assert torch.equal(adv[5:], x[5:])
        assert 0 < (adv[:5] - x[:5]).abs().max() <= EPS * (1 + 1e-5)
        with torch.no_grad():
            before, after = (torch.nn.functional.cross_entropy(model(z)[5:], y[5:]) for z in (x, adv))
        assert after > before
    assert all(p.requires_grad for p in model.parameters())


def test_tracked_statistics_let_nothing_through(setup):
    model, x, y = setup
    with use_statistics(model, "tracked"):
        assert torch.equal(attack_neighbours(model, x, y, 5, EPS), x)


@pytest.mark.parametrize(("attacked", "message"), [(0, "attacked is 0"), (10, "leave at least one of 10")])
def test_wrong_numbers(setup, attacked, message):
    with pytest.raises(ValueError, match=message):
        attack_neighbours(*setup, attacked, EPS)


@pytest.mark.parametrize("step_size", [math.nan, -0.1, (0.1, math.inf, 0.1)])
def test_wrong_step_sizes(setup, step_size):
    with pytest.raises(ValueError, match="step_size is"):
        attack_neighbours(*setup, 5, EPS, step_size=step_size)


def test_no_neighbours(setup):
    with pytest.raises(ValueError, match="holds no image"):
        Among(setup[0], setup[1][:0])
