"""Networks of the user's own: every form loads and gives the gradient of the original, every refusal says why."""

from __future__ import annotations

import sys
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from redteam.core.errors import ConfigError, UnknownNameError
from redteam.core.hashing import digest_file
from redteam.core.seeding import SeedPath
from redteam.learn import models
from redteam.threats.evasion.adapt.external import (
    Normalised,
    check,
    digest,
    is_external,
    load_external,
    parse,
    parts,
)

K, SIDE = 5, 16
SOURCE = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, classes: int = 5, channels: int = 3) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))

small = Small()

def network():
    return Small()

def wants(classes):
    return Small(classes)

def gives_dict():
    return {"conv.weight": torch.zeros(1)}

def gives_class():
    return Small
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with user.py, and one network of it in evaluation mode, whose running statistics are not 0 and 1."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "user.py").write_text(SOURCE)
    with SeedPath(3).as_global():
        network = load(f"{folder}/user.py:network")
        network.train()(torch.rand(32, 3, SIDE, SIDE))
    return folder, network.eval()


def load(name, **changes):
    return load_external(name, **{"classes": K, "shape": (SIDE, SIDE, 3), **changes})


def answers_and_gradient(network, seed=0):
    x = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    out = network(x)
    return out.detach(), torch.autograd.grad((out * torch.arange(1.0, 1 + K)).sum(), x)[0]


def same(a, b, tolerance=1e-6):
    (u, g), (v, h) = answers_and_gradient(a), answers_and_gradient(b)
    assert g.abs().max() > 0
    return torch.allclose(u, v, atol=tolerance) and torch.allclose(g, h, atol=tolerance)


def script(network, path):
    torch.jit.script(network).save(path)


def trace(network, path):
    torch.jit.trace(network, torch.rand(2, 3, SIDE, SIDE)).save(path)


def freeze(network, path):
    torch.jit.freeze(torch.jit.script(network)).save(path)


def export(network, path, fixed=False):
    shapes = None if fixed else ({0: torch.export.Dim("n", min=1)},)
    with path.open("wb") as f:
        torch.export.save(
            torch.export.export(network, (torch.rand(2, 3, SIDE, SIDE),), dynamic_shapes=shapes), f
        )


# ---------------------------------------------------------------- names


def test_names_are_taken_apart():
    assert not any(map(is_external, models.NAMES)) and not any(map(digest, models.NAMES))
    files = ["a.pt", "dir/net", "x.py:f", "weights.onnx"]
    assert all(map(is_external, [*files, "timm:test_vit", "torchvision:resnet18@w.pth"]))
    name = parse("torchvision:resnet18@/some@where/a:b.pth")
    assert (name.form, name.what, str(name.path)) == ("torchvision", "resnet18", "/some@where/a:b.pth")
    name = parse("/a:b@c/d.py:make")
    assert (name.form, name.what, str(name.path)) == ("function", "make", "/a:b@c/d.py")
    assert str(parse("a:b@c.pt").path) == "a:b@c.pt"
    assert parse("timm:test_vit.r160_in1k").path is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torchvision:", "expected torchvision:NAME"), ("timm:x@", "expected timm:NAME"),
        ("net.py", r"net.py:FUNCTION"), ("net.py:", "name of a function"), ("net.py:a b", "name of a function"),
        ("resnet", "expected FILE.pt"),
    ],
)  # fmt: skip
def test_names_of_no_form(name, says):
    with pytest.raises(ConfigError, match=says):
        parse(name)


@pytest.mark.parametrize("name", ["none.pt", "none.py:f", "torchvision:resnet18@none.pth", "some/net"])
def test_missing_files(name):
    for ask in (load, digest):
        with pytest.raises(ConfigError, match="does not exist"):
            ask(name)
    with pytest.raises(ConfigError, match="is a folder"):
        load("./")


def test_digests_are_of_the_file(tmp_path):
    path = tmp_path / "a:b@c.py"
    path.write_text(SOURCE)
    assert digest(f"{path}:network") == digest_file(path) == digest(f"timm:test_vit@{path}")
    assert digest("torchvision:resnet18") == ""
    assert isinstance(load(f"{path}:network"), nn.Module)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("write", [script, trace, freeze, export])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pt2"])
def test_archives_answer_like_the_original(small, tmp_path, write, suffix, recwarn):
    """Whatever the suffix; with a gradient to the input; silently; and `eval` on what holds them is no error."""
    path = tmp_path / f"net{suffix}"
    write(small[1], path)
    recwarn.clear()
    network = load(str(path))
    assert not recwarn.list, [str(w.message) for w in recwarn.list]
    assert not network.training and same(network, small[1])
    assert same(nn.Sequential(network).eval(), small[1])
    with pytest.raises(ConfigError, match="can be attacked but not trained"):
        parts(network, (3, SIDE, SIDE))


def test_training_mode_is_left(small, tmp_path):
    torch.jit.script(small[1].train()).save(tmp_path / "net.pt")
    assert same(load(str(tmp_path / "net.pt")), small[1].eval())


@pytest.mark.parametrize("write", [trace, export])
def test_batch_normalisation_left_in_training_is_refused(tmp_path, write):
    """A trace or an export keeps the mode it was made in, and no `eval` reaches it."""
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(nn.Conv2d(3, K, 3), nn.BatchNorm2d(K), nn.ReLU(), pooled)
    write(network.train(), tmp_path / "net.pt2")
    with pytest.raises(ConfigError, match="on its own and among others"):
        load(str(tmp_path / "net.pt2"))
    write(network.eval(), tmp_path / "net.pt2")
    assert same(load(str(tmp_path / "net.pt2")), network)


def test_random_networks_pass():
    """Whether a random answer is acceptable is the scorer's flag to raise."""
    noisy = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, K), nn.Dropout(0.5))
    check(noisy.train(), "noisy", classes=K, shape=(SIDE, SIDE, 3))


def test_a_fixed_size_is_named(small, tmp_path):
    export(small[1], tmp_path / "net.pt2")
    with pytest.raises(ConfigError, match=r"shape \(3, 8, 8\).*x.size\(\)\[2\] == 16. Set `size`.*\(now 8\)"):
        load(str(tmp_path / "net.pt2"), shape=(8, 8, 3))


def test_a_fixed_batch_is_refused(small, tmp_path):
    export(small[1], tmp_path / "net.pt2", fixed=True)
    with pytest.raises(ConfigError, match=r"any number of images \(torch.export: dynamic_shapes\)"):
        load(str(tmp_path / "net.pt2"))


def damage(folder, suffix, member, content):
    """Write `bad`, which is `net` with other content in the member that ends so."""
    old, new = (folder / f"{name}.{suffix}" for name in ("net", "bad"))
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(new, "w") as target:
        for name in source.namelist():
            target.writestr(name, content if name.endswith(member) else source.read(name))


class Trap:
    """Reading it would call `print`; the tests would see the output."""

    def __reduce__(self):
        return (print, ("the pickle ran",))


def test_pickles_are_refused_unread(small, tmp_path, capsys):
    folder, network = small
    torch.save(network, tmp_path / "whole.pt")
    with pytest.raises(
        ConfigError, match=r"reading a pickle runs code.*not loaded.*FILE.py:FUNCTION.*torch.export"
    ):
        load(str(tmp_path / "whole.pt"))
    torch.save({"a": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ConfigError, match=r"builtins.print.*runs code"):
        load(str(tmp_path / "trap.pt"))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"weights alone.*torchvision:NAME@"):
        load(str(tmp_path / "weights.pth"))
    torch.save({"a": Trap()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in (f"{tmp_path}/old.pt", f"{folder}/user.py"):
        with pytest.raises(ConfigError, match="neither a TorchScript archive nor|FUNCTION"):
            load(name)
    for weights in ("trap.pt", "old.pt"):
        with pytest.raises(ConfigError, match="cannot be read as tensors alone"):
            load(f"torchvision:shufflenet_v2_x0_5@{tmp_path / weights}")
    assert "the pickle ran" not in capsys.readouterr().out


def test_an_export_with_a_pickle_inside_is_refused(small, tmp_path, capsys):
    """torch.export.load unpickles sample inputs without restraint where they are no plain tensors."""
    export(small[1], tmp_path / "net.pt2")
    torch.save({"a": Trap()}, tmp_path / "trap.pt")
    damage(tmp_path, "pt2", "sample_inputs/model.pt", (tmp_path / "trap.pt").read_bytes())
    with pytest.raises(ConfigError, match=r"pickled parts \(builtins.print\)"):
        load(str(tmp_path / "bad.pt2"))
    assert "the pickle ran" not in capsys.readouterr().out


def test_damaged_files(small, tmp_path):
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as f:
        f.writestr("a/b.txt", "text")
    export(small[1], tmp_path / "net.pt2")
    damage(tmp_path, "pt2", "model.json", b"{")
    script(small[1], tmp_path / "net.pt")
    damage(tmp_path, "pt", "data.pkl", b"")
    for name, says in (
        ("junk.pt", "neither"), ("other.pt", "none of torch"), ("bad.pt2", "torch.export.load failed"),
        ("bad.pt", "torch.jit.load failed"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            load(str(tmp_path / name))
        with pytest.raises(ConfigError, match="cannot be read as tensors alone"):
            load(f"torchvision:shufflenet_v2_x0_5@{tmp_path / 'junk.pt'}")


# ---------------------------------------------------------------- functions


def test_a_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_a_test.py").write_text(SOURCE)
    (tmp_path / "main.py").write_text("from neighbour_of_a_test import Small\n")
    before = list(sys.path)
    network = load(f"{tmp_path}/main.py:Small")
    assert type(network).__name__ == "Small" and not network.training and sys.path == before
    assert "main" not in sys.modules
    del sys.modules["neighbour_of_a_test"]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("netwrk", "has no function 'netwrk'. Did you mean 'network'"),
        ("wants", r"callable without arguments: missing a required argument: 'classes'"),
        ("gives_dict", r"gives_dict\(\) returned an object of type dict; expected a torch.nn.Module"),
        ("gives_class", "returned the class Small"),
        ("small", "small is an object of type Small; expected a function"),
    ],
)
def test_functions_that_do_not_give_a_network(small, function, says):
    with pytest.raises(ConfigError, match=says):
        load(f"{small[0]}/user.py:{function}")


def test_files_that_cannot_be_imported(tmp_path):
    (tmp_path / "a.py").write_text("import no_such_module_anywhere")
    (tmp_path / "b.py").write_text("def f(:\n")
    (tmp_path / "c.py").write_text("1 / 0\n")
    wrong = {
        "a": "ModuleNotFoundError.*no_such_module",
        "b": "SyntaxError",
        "c": "ZeroDivisionError.*\n.*c.py:1, in",
    }
    for name, says in wrong.items():
        with pytest.raises(ConfigError, match=says):
            load(f"{tmp_path}/{name}.py:f")


# ---------------------------------------------------------------- libraries


@pytest.fixture(scope="module")
def shuffle():
    from torchvision.models import get_model

    with SeedPath(4).as_global():
        return get_model("shufflenet_v2_x0_5", weights=None, num_classes=K).eval()


def wrapped(state):
    return {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}


def write_safetensors(state, path):
    pytest.importorskip("safetensors.torch").save_file(state, path)


def write_old(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (torch.save, "w.pth"),
        (write_old, "old.pth"),
        (lambda s, p: torch.save(wrapped(s), p), "checkpoint.pt"),
        (write_safetensors, "w.safetensors"),
    ],
)
def test_torchvision_with_weights(shuffle, tmp_path, write, file):
    write(shuffle.state_dict(), tmp_path / file)
    name = f"torchvision:shufflenet_v2_x0_5@{tmp_path / file}"
    assert digest(name) == digest_file(tmp_path / file)
    imagenet = Normalised(shuffle, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert same(load(name), imagenet) and not same(load(name), shuffle)
    assert same(load(name, mean=(0.0,), std=(1.0,)), shuffle)
    assert same(load(name, mean=(0.5,), std=(0.1, 0.2, 0.3)), Normalised(shuffle, (0.5,), (0.1, 0.2, 0.3)))


def test_weights_that_do_not_fit(shuffle, tmp_path):
    path, state = tmp_path / "w.pth", shuffle.state_dict()

    def says(what, state, **changes):
        torch.save(state, path)
        with pytest.raises(ConfigError, match=what):
            load(f"torchvision:shufflenet_v2_x0_5@{path}", **changes)

    says("weights for 5 classes; the data have 7", state, classes=7)
    says("lacks 1 \\(fc.bias\\)", {k: v for k, v in state.items() if k != "fc.bias"})
    says("does not know 1 \\(other\\)", {**state, "other": torch.zeros(1)})
    says(r"shape \(1, 2\).*wants \(24,\)", {**state, "conv1.1.weight": torch.zeros(1, 2)})
    says("an object of type Tensor; expected a state dict", torch.zeros(3))
    (tmp_path / "w.safetensors").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="cannot be read as tensors alone"):
        load(f"torchvision:shufflenet_v2_x0_5@{tmp_path}/w.safetensors")


def test_untrained_networks_are_seeded_from_outside():
    def build(seed):
        with SeedPath(seed).as_global():
            return load("torchvision:shufflenet_v2_x0_5")

    assert same(build(0), build(0)) and not same(build(0), build(1))


def test_unknown_networks():
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet18'"):
        load("torchvision:resnet-18")
    with pytest.raises(UnknownNameError, match="unknown classifier"):
        load("torchvision:fasterrcnn_resnet50_fpn")
    pytest.importorskip("timm")
    for name in ("test_vitt", "hf-hub:timm/test_vit.r160_in1k"):
        with pytest.raises(UnknownNameError, match="unknown network of timm"):
            load(f"timm:{name}")


def test_timm(tmp_path):
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_resnet", pretrained=False, num_classes=K).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    cfg = network.pretrained_cfg
    found = load(f"timm:test_resnet@{tmp_path}/w.pth")
    assert same(found, Normalised(network, cfg["mean"], cfg["std"]))
    body, head = parts(found, (3, SIDE, SIDE))
    assert same(nn.Sequential(body, head), found)
    with pytest.raises(ConfigError, match=r"\(3, 16, 16\).*Set `size`.*\(now 16\)"):
        load("timm:vit_tiny_patch16_224")
    grey = {"shape": (SIDE, SIDE, 1)}
    with pytest.raises(ConfigError, match="mean: expected 1 or 1 numbers"):
        load("timm:test_resnet", **grey)
    assert isinstance(load("timm:test_resnet", **grey, mean=(0.1,), std=(0.3,)), Normalised)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'redteam\[evasion\]'"):
        load("timm:test_resnet")


# ---------------------------------------------------------------- checks


class Gives(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda x: {"logits": x}, "gave an object of type dict; expected logits as one tensor"),
        (
            lambda x: x.flatten(1)[:, :7],
            r"shape \(3, 7\) for 3 images; expected \(3, 5\).*5 classes of the data",
        ),
        (lambda x: x.flatten(1)[:, :K].squeeze(), r"shape \(5,\) for 1 images"),
        (lambda x: x[:, :, :1, :1], r"shape \(3, 3, 1, 1\)"),
        (lambda x: x.flatten(1)[:, :K] / 0, "not finite"),
        (lambda x: x.double() @ x, "could not process.*(3, 16, 16)"),
        (lambda x: x.flatten(1)[:, :K] - x.mean(), "on its own and among others"),
    ],
)
def test_what_is_no_classifier(make, says):
    with pytest.raises(ConfigError, match=says):
        check(Gives(make), "mine", classes=K, shape=(SIDE, SIDE, 3))


def test_wrong_channels_and_constants(small, tmp_path):
    script(small[1], tmp_path / "net.pt")
    for name in (f"{small[0]}/user.py:network", f"{tmp_path}/net.pt"):
        with pytest.raises(ConfigError, match=r"shape \(1, 16, 16\).*expected input.*to have 3 channels"):
            load(name, shape=(SIDE, SIDE, 1))
        normalised = Normalised(load(name), (0.3,), (0.7,))
        assert same(load(name, mean=(0.3,), std=(0.7,)), normalised) or "network" in name
        for mean, std, says in (
            ((0.5,), (), "std: expected 1 or 3 numbers"), ((0.1, 0.2), (1.0,), "mean: expected 1 or 3"),
            ((127.0,), (58.0,), "by 255"), ((0.5,), (0.0,), "std above 0"),
        ):  # fmt: skip
            with pytest.raises(ConfigError, match=says):
                load(name, mean=mean, std=std)


@given(
    mean=st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    std=st.lists(st.floats(0.05, 2), min_size=3, max_size=3),
    seed=st.integers(0, 2**31),
)
def test_normalised_undoes_scaling(mean, std, seed):
    """Normalised(f)(std * z + mean) is f(z), its gradient is f's divided by std, its constants are no parameters."""
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    scale, shift = (torch.tensor(v).view(1, 3, 1, 1) for v in (std, mean))
    network = nn.Sequential(nn.Flatten(), nn.Tanh())
    inside = Normalised(network, mean, std)
    assert torch.allclose(inside(scale * z + shift), network(z), atol=2e-4)
    x = (scale * z + shift).requires_grad_()
    found = torch.autograd.grad(inside(x).sum(), x)[0]
    expected = (1 - torch.tanh((x.detach() - shift) / scale) ** 2) / scale
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert set(inside.state_dict()) == {"mean", "std"} and not list(inside.parameters())


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("name", sorted(models.NAMES))
def test_parts_of_every_model(name):
    network = models.build(name, classes=K, shape=(SIDE, SIDE, 3), seeds=SeedPath(0))
    if name == "vit":  # its head begins at 0, and gives no gradient to compare
        nn.init.normal_(network.net.heads.head.weight)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    body, head = parts(network, (3, SIDE, SIDE))
    assert head.out_features == K and body(torch.rand(2, 3, SIDE, SIDE)).shape == (2, head.in_features)
    assert same(nn.Sequential(body, head), network.eval(), 1e-5)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())  # a copy was divided
    split = sum(p.numel() for p in (*body.parameters(), *head.parameters()))
    assert split == sum(p.numel() for p in network.parameters())


def test_parts_follow_what_runs_and_not_the_order_of_definition():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.first = nn.Linear(8, K), nn.Linear(3, 8)

        def forward(self, x):
            return self.head(self.first(x.mean((2, 3))).relu())

    network = Late()
    body, head = parts(Normalised(network, (0.5,), (0.2,)), (3, SIDE, SIDE))
    assert torch.equal(head.weight, network.head.weight)
    assert same(nn.Sequential(body, head), Normalised(network, (0.5,), (0.2,)))


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(3, K, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, K), nn.Softmax(1)),
        nn.Sequential(nn.Linear(SIDE, K), Gives(lambda z: z.mean((1, 2)))),
        nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, K), Gives(lambda z: z * 2)),
        nn.Sequential(nn.Linear(SIDE, K)),
    ],
)
def test_networks_without_a_linear_head(network):
    with pytest.raises(ConfigError, match="no linear layer whose output is its logits"):
        parts(network, (3, SIDE, SIDE))
