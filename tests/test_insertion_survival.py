"""What people do to a network after attention was inserted: it must survive all of it with the same output."""

from __future__ import annotations

import copy
import io
import pickle
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attendo.insertion import attention_parameters, insert, replace
from insertion_networks import Residual, network

SIZE = (3, 64, 64)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(0))


def inserted(name: str = "own residual", attention: str = "cbam", where: str = "auto") -> nn.Module:
    """A network whose attention is at work, as after training."""
    torch.manual_seed(0)
    model = network(name)
    insert(model, attention, where, input_size=SIZE)
    for parameter in attention_parameters(model):
        nn.init.constant_(parameter, 0.5) if parameter.shape == (1,) else None
    return model


# a hook at a leaf; at a block; at a container that runs its children, where the mechanism lives elsewhere
KINDS = [("own residual", "auto"), ("own residual", "stages"), ("own dense", "stages")]
every_kind = pytest.mark.parametrize(("name", "where"), KINDS, ids=["leaf", "block", "container"])


@every_kind
def test_copies_and_pickles_give_the_same_output_and_are_independent(name, where):
    model = inserted(name, where=where)
    want = model(images())
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    with torch.no_grad():
        for parameter in attention_parameters(model):
            parameter.add_(1.0)
    assert not torch.equal(model(images()), want)
    for twin in twins:
        assert torch.equal(twin(images()), want)


def test_a_hook_registered_on_an_unpickled_network_does_not_take_the_place_of_ours():
    model = pickle.loads(pickle.dumps(inserted()))
    want = model(images())
    for module in model.modules():  # in a new process their numbers begin at 0 again
        for number in range(3):
            module._forward_hooks[number] = lambda module, args, output: None
    # hooks on a norm keep it out of the block's one call, which rounds otherwise
    torch.testing.assert_close(model(images()), want, rtol=1e-5, atol=1e-6)


@every_kind
def test_it_compiles_without_a_graph_break(name, where):
    model = inserted(name, where=where)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-5, atol=1e-5)


def test_it_compiles_in_training_as_well():
    model = inserted().train()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for net in (model, compiled):
        net(images()).square().mean().backward()
    for one, other in zip(attention_parameters(model), attention_parameters(twin), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@every_kind
def test_it_exports(name, where):
    model = inserted(name, where=where)
    exported = torch.export.export(model, (images(),)).module()
    torch.testing.assert_close(exported(images()), model(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the exporter's own use of older torch interfaces
@pytest.mark.filterwarnings("ignore::FutureWarning")
@every_kind
def test_it_exports_to_onnx(name, where, tmp_path):
    pytest.importorskip("onnxscript", reason="ONNX export needs onnxscript: pip install onnx onnxscript onnxruntime")
    runtime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
    model = inserted(name, where=where)
    torch.onnx.export(model, (images(),), tmp_path / "model.onnx", dynamo=True, external_data=False, verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (out,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
    torch.testing.assert_close(torch.from_numpy(out), model(images()), rtol=1e-4, atol=1e-4)


@every_kind
def test_it_traces_with_fx_and_torchvision_extracts_features(name, where):
    from torchvision.models.feature_extraction import create_feature_extractor

    model = inserted(name, where=where)
    traced, extractor = torch.fx.symbolic_trace(model), create_feature_extractor(model, ["fc"])
    want = model(images())  # the traces hold the definition, this may run a kernel
    torch.testing.assert_close(traced(images()), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(extractor(images())["fc"], want, rtol=1e-5, atol=1e-5)


@every_kind
def test_jit_traces_it_and_refuses_to_script_it(name, where):
    model = inserted(name, where=where)
    with pytest.warns((DeprecationWarning, FutureWarning)):
        traced = torch.jit.trace(model, images())
    torch.testing.assert_close(traced(images()), model(images()), rtol=1e-5, atol=1e-5)
    with (
        pytest.warns((DeprecationWarning, FutureWarning)),
        pytest.raises(Exception, match=r"attendo|[Hh]ook"),
    ):
        torch.jit.script(model)


def test_it_trains_under_autocast():
    model = inserted().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images()).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention_parameters(model))


class Checkpointed(Residual):
    """Its blocks run again in the backward pass instead of keeping their maps."""

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.blocks, self.stem(x), use_reentrant=False)
        return self.fc(checkpoint(self.last, self.down(x), use_reentrant=False).mean((2, 3)))


def test_gradient_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    model, plain = Checkpointed(), Residual()
    for net in (model, plain):
        insert(net, "se", input_size=SIZE)
        for parameter in attention_parameters(net):
            nn.init.constant_(parameter, 0.1)
    plain.load_state_dict(model.state_dict())
    for net in (model, plain):
        net.train()(images()).square().mean().backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_it_moves_and_an_ema_copy_follows_it():
    from timm.utils import ModelEmaV3

    model = inserted()
    ema = ModelEmaV3(model, decay=0.5)
    want = model(images())
    assert torch.equal(ema.module(images()), want)
    before = [p.clone() for p in attention_parameters(ema.module)]
    with torch.no_grad():
        for parameter in attention_parameters(model):
            parameter.add_(1.0)
    ema.update(model)
    for old, new in zip(before, attention_parameters(ema.module), strict=True):
        torch.testing.assert_close(new, old + 0.5)
    double = copy.deepcopy(model).to(torch.float64)
    torch.testing.assert_close(double(images().double()).float(), model(images()), rtol=1e-4, atol=1e-4)
    assert {p.device.type for p in model.to("meta").parameters()} == {"meta"}


def test_timm_features_only_before_and_after():
    import timm
    from timm.models._features import FeatureListNet

    torch.manual_seed(0)
    backbone = timm.create_model("resnet18", features_only=True).eval()
    plain = backbone(images())
    insert(backbone, "se", input_size=SIZE)
    assert all(torch.equal(a, b) for a, b in zip(backbone(images()), plain, strict=True))
    model = inserted("timm resnet18d")
    wanted = model.forward_features(images())
    features = FeatureListNet(model, out_indices=(4,))
    assert torch.equal(features(images())[-1], wanted)


def test_parameters_can_be_swapped_functionally():
    model = inserted()
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters() if name.endswith("alpha")}
    out = torch.func.functional_call(model, zeros, (images(),))
    assert not torch.equal(out, model(images()))
    assert torch.equal(out, network("own residual")(images()))


def test_a_replaced_convolution_compiles_and_exports():
    model = network("own residual")
    replace(model, "sk", what="last.conv2", groups=1, input_size=SIZE)
    model.eval()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-5, atol=1e-5)
    exported = torch.export.export(pickle.loads(pickle.dumps(model)), (images(),)).module()
    torch.testing.assert_close(exported(images()), model(images()), rtol=1e-5, atol=1e-5)


def _train_in_parallel(rank: int, port: int, results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = Residual()
    insert(model, "cbam", input_size=SIZE)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimiser = torch.optim.SGD(parallel.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        parallel(images(4)[rank * 2 : rank * 2 + 2]).square().mean().backward()  # unused parameters would raise
        optimiser.step()
    results[rank] = [p.detach().clone() for p in attention_parameters(model)]
    torch.distributed.destroy_process_group()


def test_two_processes_train_the_same_attention():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_train_in_parallel, (port, results), nprocs=2)
        first, second = results[0], results[1]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert any(p.shape == (1,) and p.item() != 0 for p in first)
