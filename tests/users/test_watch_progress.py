"""Someone waits for a long measurement and wants to see where it is, and someone else wants quiet."""

import pytest
import torch

import rnlib

DATA = rnlib.Dataset("noise", torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8), torch.arange(8) % 4, ())
BUDGET = rnlib.Budget(steps=1, rounds=1, queries=1)


def measured(model, progress):
    return rnlib.measure(model, DATA, batch_size=4, progress=progress)[0]


def evaluated(model, progress):
    attacks = {"clean": None}
    return next(rnlib.evaluate(model, DATA, attacks, batch_size=4, progress=progress)).correct


def audited(model, progress):
    return rnlib.audit_batch_dependence(model, DATA, batch_sizes=[4], progress=progress).table[0].accuracy


def attacked(model, progress):
    x = DATA.images.float() / 255
    return rnlib.strongest(model, x, DATA.labels, 0.1, budget=BUDGET, progress=progress).correct


@pytest.mark.parametrize("call", [measured, evaluated, audited, attacked])
def test_the_accuracy_so_far_is_shown_on_request(call, capsys):
    model = rnlib.resnet(8, width=4, num_classes=4).eval()
    torch.manual_seed(0)
    quiet = call(model, False)
    assert capsys.readouterr() == ("", "")
    torch.manual_seed(0)
    found = call(model, True)
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(quiet))
    err = capsys.readouterr().err
    assert "100%" in err
    if call in (measured, evaluated):
        assert f"{100 * found.float().mean():.1f}% correct" in err
    else:
        assert "% correct" in err
