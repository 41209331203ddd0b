"""The networks, images and settings that runs mean, against rnlib's own."""

from pathlib import Path

import pytest
import torch

from rnlib import resnet, statistics_modes
from study import networks, work
from study.networks import new_model, training_set, training_settings
from study.runs import make_run

pytestmark = pytest.mark.usefixtures("small_images")
PROFILE = str(Path(__file__).with_name("tiny.yml"))
LONGER = {"experiment": "two_epochs"}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_weights_of_a_run_come_from_its_seed_alone(monkeypatch):
    state = torch.random.get_rng_state()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "manual_seed", None)  # it would seed GPUs as well
        first, again, other = (new_model(make_run(PROFILE, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        wanted = resnet(8, "batch_norm", width=4, num_classes=10, in_channels=1, mean=(0.286,), std=(0.353,))
    assert same(first.state_dict(), again.state_dict())
    assert same(first.state_dict(), wanted.state_dict())
    assert not same(first.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"norm": "x"}, r"norm is 'x', it must be one of batch_norm, robust_norm, .*norm_prop"),
        ({"dataset": "x"}, r"dataset is 'x', it must be one of cifar10, .*fashion-mnist-sample"),
        ({"architecture": "resnet21"}, r"6n \+ 2"),
        ({"architecture": "lenet"}, "architecture is 'lenet', it must be such as resnet20 or vgg11"),
        ({"schedule": "x"}, "schedule is 'x', it must be step or one_cycle"),
        ({"norm": "batch_norm", "p": 0.2}, "does not take"),
        ({"norm": "norm_prop", "p": 0.2}, "norm given by name"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(empty, chosen, message):
    for do in (work.train_run, lambda run: work.measure_run(run, "evaluations")):
        with pytest.raises(ValueError, match=message):
            do(make_run(PROFILE, **chosen))
    assert not empty.exists()


@pytest.mark.parametrize("norm", networks.STUDY_NORMS)
def test_the_norms_of_the_study_make_networks_that_learn(norm):
    model = new_model(make_run("book", norm=norm))
    assert statistics_modes(model) == (("none",) if norm == "norm_prop" else ("tracked", "batch"))
    model(torch.rand(4, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_paper_profile_attacks_as_the_released_code():
    attack = training_settings(make_run("paper", training="adversarial")).attack
    assert attack.steps == 10
    # eps 0.03 after division by std (0.2023, 0.1994, 0.2010), steps of eps / 4
    assert attack.eps == pytest.approx((0.03 * 0.2023, 0.03 * 0.1994, 0.03 * 0.2010))
    assert attack.step_size == pytest.approx(tuple(e / 4 for e in attack.eps))
    assert training_settings(make_run("paper")).attack is None


def test_a_share_of_each_batch_may_stay_clean():
    attack = training_settings(make_run(PROFILE, training="adversarial", clean_share=0.3)).attack
    model, x, y = resnet(8, width=4, in_channels=1).eval(), torch.rand(10, 1, 8, 8), torch.arange(10)
    chance = [torch.Generator().manual_seed(0) for _ in range(2)]
    crafted = attack(model, x, y, generator=chance[0])
    assert torch.equal(crafted[7:], x[7:])
    assert torch.equal(crafted[:7], attack.attack(model, x[:7], y[:7], generator=chance[1]))
    assert not torch.equal(crafted[:7], x[:7])


def test_every_setting_of_a_training_reaches_it():
    chosen = {"augment": False, "label_smoothing": 0.1, "momentum": 0.5, "clip": 2.0, "precision": "bfloat16"}
    chosen |= {"schedule": "step", "milestones": [1], "crafting": "eval", "compile": True, "seed": 7}
    run = make_run(PROFILE, **chosen)
    settings = training_settings(run)
    assert all(getattr(settings, name) == getattr(run, name) for name in chosen)


def test_images_are_the_first_of_a_fixed_order():
    run = make_run(PROFILE)
    assert (len(training_set(run)), len(networks.test_set(run)), len(networks.test_set(run, 10))) == (
        200,
        60,
        10,
    )
    assert len(networks.test_set(make_run(PROFILE, **LONGER))) == 20
    assert torch.equal(networks.test_set(run, 10).images, networks.test_set(run).images[:10])
    some = make_run(PROFILE, train_images=30)
    assert torch.equal(training_set(some).images, training_set(run).images[:30])
