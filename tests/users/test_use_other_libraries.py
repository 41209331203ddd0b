"""Someone uses models and norms of rnlib with other libraries, whose values are the right ones."""

import copy

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import rnlib

X = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 4
LOADER = DataLoader(TensorDataset(X, Y), batch_size=8)
NORMS = ["batch_norm", "robust_norm"]
HEAVY = "brings a dozen packages, and is not among those of the tests: pip install it to run this one"
near = {"rtol": 1e-4, "atol": 1e-5}


def network(norm="batch_norm"):
    """Small, with statistics that were tracked on some images."""
    torch.manual_seed(0)
    convolution, middle = nn.Conv2d(3, 4, 4, stride=4), rnlib.make_norm(norm)(4)
    model = nn.Sequential(convolution, middle, nn.ReLU(), nn.Flatten(), nn.Linear(256, 4))
    with torch.no_grad():
        model(X)
    return model.eval()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_timm_model_answers_as_before_and_is_audited(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=4)
    with torch.no_grad():
        for _ in range(20):
            theirs(X)
        wanted = [theirs.eval()(x) for x, _ in LOADER]
    ours = rnlib.convert_norms(copy.deepcopy(theirs), "batch_norm")
    with torch.no_grad():
        torch.testing.assert_close([ours(x) for x, _ in LOADER], wanted, **near)
    found, _, _ = rnlib.measure(ours, LOADER)
    assert torch.equal(found, torch.cat(wanted).argmax(1) == Y)
    audit = rnlib.audit_batch_dependence(theirs, LOADER, batch_sizes=[8])
    by_cell = {(record.statistics, record.composition): record for record in audit.table}
    assert by_cell["tracked", "mixed"].accuracy == pytest.approx(100 * found.float().mean().item())
    assert by_cell["tracked", "sorted"].changed == 0
    order = rnlib.data.test_order(24)
    with torch.no_grad():  # in training mode theirs use the statistics of the batch
        answers = torch.cat([theirs.train()(x).argmax(1) for x in X[order].split(8)])
    right = (answers == Y[order]).float().mean().item()
    assert by_cell["batch", "mixed"].accuracy == pytest.approx(100 * right)


def test_torchmetrics_counts_the_same():
    metrics = pytest.importorskip("torchmetrics.classification")
    model, counted = network(), metrics.MulticlassAccuracy(4, average="micro")
    with torch.no_grad(), rnlib.use_statistics(model, "batch"):
        for x, y in LOADER:
            counted.update(model(x), y)
    correct, _, _ = rnlib.measure(model, LOADER, statistics="batch")
    assert correct.float().mean().item() == pytest.approx(counted.compute().item())


@pytest.mark.slow
def test_lightning_trains_to_the_weights_of_a_plain_loop(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning", reason=HEAVY)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network("robust_norm")

        def training_step(self, batch):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module, plain = Module().train(), network("robust_norm").train()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(module, LOADER)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for x, y in LOADER:
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(module.model.state_dict(), plain.state_dict(), **near)


@pytest.mark.parametrize("norm", NORMS)
def test_a_compiled_model_follows_the_switch(norm):
    model = network(norm)
    compiled = torch.compile(model, backend="eager")  # what is traced, and when it is traced anew
    for mode in ("tracked", "batch", "tracked"):
        with torch.no_grad(), rnlib.use_statistics(compiled, mode):
            torch.testing.assert_close(compiled(X[:8]), model(X[:8]), **near)
    attack = rnlib.BIM(0.02, steps=2)
    with rnlib.use_statistics(model, "batch"):
        torch.testing.assert_close(attack(compiled, X, Y), attack(model, X, Y), rtol=0, atol=0.03)


@pytest.mark.parametrize("norm", NORMS)
def test_autocast_keeps_statistics_in_float32(norm):
    exact, mixed = network(norm).train(), network(norm).train()
    exact(X)
    with torch.autocast("cpu", torch.bfloat16):
        answer = mixed(X)
    assert answer.dtype == torch.bfloat16
    assert {value.dtype for name, value in mixed.state_dict().items() if "running" in name} == {torch.float32}
    for name, value in rnlib.tracked_statistics(exact).items():
        torch.testing.assert_close(rnlib.tracked_statistics(mixed)[name], value, rtol=0.05, atol=0.02)


def test_an_average_of_models_is_one_and_can_be_measured():
    first, second = network(), network()
    with torch.no_grad():
        for value in (*second.parameters(), *second.buffers()):
            value += 1
    average = AveragedModel(first, use_buffers=True)
    average.update_parameters(first)
    average.update_parameters(second)
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, first.state_dict()[name] + 0.5)
    assert rnlib.statistics_modes(average) == ("tracked", "batch")
    found, _, _ = rnlib.measure(average, LOADER, statistics="batch")
    with torch.no_grad(), rnlib.use_statistics(average, "batch"):
        assert torch.equal(found, torch.cat([average(x).argmax(1) == y for x, y in LOADER]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mode", ["tracked", "batch"])
def test_an_exported_program_keeps_the_statistics_that_it_was_exported_with(norm, mode):
    model = network(norm)
    with rnlib.use_statistics(model, mode), torch.no_grad():
        program, wanted = torch.export.export(model, (X[:8],)), model(X[8:16])
    torch.testing.assert_close(program.module()(X[8:16]), wanted, **near)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_onnx_answers_the_same(norm, tmp_path):
    onnx = pytest.importorskip("onnx.reference", reason=HEAVY)
    pytest.importorskip("onnxscript", reason=HEAVY)
    model, file = network(norm), tmp_path / "model.onnx"
    torch.onnx.export(model, (X[:4],), file, dynamo=True, verbose=False)
    session = onnx.ReferenceEvaluator(str(file))
    (found,) = session.run(None, {session.input_names[0]: X[4:8].numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(X[4:8]), **near)


def test_what_quantisation_fuses_must_be_pytorchs_own():
    quantization = pytest.importorskip("torch.ao.quantization")
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    ours = rnlib.convert_norms(copy.deepcopy(chain), "batch_norm")
    with pytest.raises(
        AssertionError, match=r"did not find fuser method for: .*Conv2d.*rnlib.norms.BatchNorm"
    ):
        quantization.fuse_modules(ours, ["0", "1"])
    back = quantization.fuse_modules(rnlib.convert_norms(ours, "torch_batch_norm"), ["0", "1"])
    assert isinstance(back[1], nn.Identity)
    with torch.no_grad():
        torch.testing.assert_close(back(X), chain(X), **near)


def _process(rank, address, answer):
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = network("robust_norm").train()
    parallel, own = DistributedDataParallel(model), X[12 * rank : 12 * rank + 12]
    first = parallel(own).detach()
    before = rnlib.tracked_statistics(model)
    parallel.eval()(own)  # the buffers of process 0 are sent before every forward
    torch.save((first, before, rnlib.tracked_statistics(model)), answer)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_in_two_processes_each_batch_has_its_own_statistics_and_the_first_ones_are_kept(tmp_path):
    """As with PyTorch's own batch norm: statistics are of a process's part, and process 0's are tracked."""
    answers, address = [tmp_path / "0.pt", tmp_path / "1.pt"], (tmp_path / "meeting").as_uri()
    other = multiprocessing.get_context("spawn").Process(target=_process, args=(1, address, answers[1]))
    other.start()
    _process(0, address, answers[0])
    other.join()
    assert other.exitcode == 0
    found, alone = [torch.load(file, weights_only=True) for file in answers], []
    for rank in range(2):
        model = network("robust_norm").train()
        torch.testing.assert_close(found[rank][0], model(X[12 * rank : 12 * rank + 12]).detach(), **near)
        alone.append(rnlib.tracked_statistics(model))
    for rank in range(2):
        torch.testing.assert_close(found[rank][1], alone[rank], **near)
        torch.testing.assert_close(found[rank][2], alone[0], **near)
