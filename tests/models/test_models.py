"""Named networks: published parameter counts, torch's results with torch's weights."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from brasa import Tensor, models, nn
from brasa.nn import functional as F

# Of the published networks: torchvision's tables; for resnet20 the paper's 0.27 M, counted with batch
# normalisation. Of the character models: counted by hand, for 100 characters.
COUNTS = {
    "lenet": 61_706,
    "mlp": 669_706,
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet20": 269_722,
    "char_lstm": 361_828,
    "char_gru": 279_396,
    "char_rnn": 114_532,
}


@pytest.fixture
def without_values(monkeypatch):
    """Leave parameters as they are allocated, so that a network of 600 MB costs nothing to make."""
    for name in ("uniform_", "normal_", "kaiming_normal_", "zeros_", "ones_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count(name, without_values):
    model = models.get(name)
    assert sum(prod(p.shape) for p in model.parameters()) == COUNTS[name]
    function = getattr(models, name)
    assert f"{COUNTS[name]:,} parameters" in function.__doc__
    assert model.training


def test_every_model_has_a_count():
    assert models.names() == list(COUNTS) or set(models.names()) == set(COUNTS)
    assert set(COUNTS) <= set(models.__all__)


@pytest.mark.parametrize(
    ("name", "closest"), [("resnet19", "resnet18"), ("LeNet", "lenet"), ("vgg16bn", "vgg16_bn")]
)
def test_unknown_names_get_a_suggestion(name, closest):
    with pytest.raises(ValueError, match=rf"no model '{name}'; did you mean '{closest}'"):
        models.get(name)


def test_unknown_names_far_from_all_get_the_list():
    for name in ("transformer-xl", 3, None):
        with pytest.raises(ValueError, match="Known are lenet, mlp"):
            models.get(name)


def test_arguments_reach_the_model(without_values):
    assert models.get("lenet", num_classes=7, in_channels=3)[0].weight.shape == (6, 3, 5, 5)
    assert models.get("mlp", sizes=(4, 3, 2), num_classes=5, dropout=0.5)[-1].weight.shape == (5, 3)
    assert models.get("resnet18", num_classes=3).fc.weight.shape == (3, 512)
    assert models.get("vgg11", num_classes=3, dropout=0.1).classifier[2].p == 0.1
    assert models.get("alexnet", num_classes=3).classifier[6].weight.shape == (3, 4096)
    with pytest.raises(ValueError, match="sizes"):
        models.mlp((4,))


# --- against torch --------------------------------------------------------------------------------


def torch_lenet(torch):
    n = torch.nn
    return n.Sequential(
        n.Conv2d(1, 6, 5, padding=2), n.ReLU(), n.MaxPool2d(2), n.Conv2d(6, 16, 5), n.ReLU(), n.MaxPool2d(2),
        n.Flatten(), n.Linear(400, 120), n.ReLU(), n.Linear(120, 84), n.ReLU(), n.Linear(84, 10),
    )  # fmt: skip


def torch_resnet(torch, depths, classes):
    """A residual network with basic blocks and torchvision's names."""
    n = torch.nn

    class Block(n.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            self.conv1 = n.Conv2d(inputs, width, 3, stride, 1, bias=False)
            self.bn1 = n.BatchNorm2d(width)
            self.conv2 = n.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = n.BatchNorm2d(width)
            self.downsample = None
            if stride != 1 or inputs != width:
                shortcut = n.Conv2d(inputs, width, 1, stride, bias=False)
                self.downsample = n.Sequential(shortcut, n.BatchNorm2d(width))

        def forward(self, x):
            identity = x if self.downsample is None else self.downsample(x)
            y = torch.relu(self.bn1(self.conv1(x)))
            return torch.relu(self.bn2(self.conv2(y)) + identity)

    class Net(n.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = n.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn1 = n.BatchNorm2d(64)
            inputs = 64
            for i, (width, depth) in enumerate(zip((64, 128, 256, 512), depths, strict=True)):
                strides = [1 if i == 0 else 2] + [1] * (depth - 1)
                blocks = [Block(inputs if j == 0 else width, width, s) for j, s in enumerate(strides)]
                setattr(self, f"layer{i + 1}", n.Sequential(*blocks))
                inputs = width
            self.fc = n.Linear(512, classes)

        def forward(self, x):
            x = n.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
                x = stage(x)
            return self.fc(x.mean((2, 3)))

    return Net()


def compare(torch, ours, theirs, x, bound):
    """Results and gradients of both networks with one state dict, which makes the round trip."""
    ours.load_state_dict(theirs.state_dict())
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        ours.zero_grad()
        theirs.zero_grad()
        y, y_torch = ours(x), theirs(torch.tensor(x))
        scale = y_torch.detach().abs().max().item()
        assert np.abs(y.data - y_torch.detach().numpy()).max() <= bound * scale
        labels = np.arange(len(x)) % y.shape[1]
        F.cross_entropy(y, labels).backward()
        torch.nn.functional.cross_entropy(y_torch, torch.tensor(labels)).backward()
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            scale = max(q.grad.abs().max().item(), 1e-6)
            assert np.abs(p.grad.data - q.grad.numpy()).max() <= 50 * bound * scale, name
    state = {name: torch.tensor(t.numpy()) for name, t in ours.state_dict().items()}
    assert list(state) == list(theirs.state_dict())
    theirs.load_state_dict(state)
    assert np.abs(theirs(torch.tensor(x)).detach().numpy() - ours(x).data).max() <= bound * scale_of(ours(x))


def scale_of(y):
    return np.abs(y.data).max()


def test_lenet_against_torch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(4, 1, 28, 28)).astype(np.float32)
    compare(torch, models.lenet(), torch_lenet(torch), x, 1e-5)


def test_resnet_against_torch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(2, 3, 40, 40))
    ours = models.ResNet(models.resnet.BasicBlock, (1, 2, 1, 1), 10).to(np.float64)
    compare(torch, ours, torch_resnet(torch, (1, 2, 1, 1), 10).double(), x, 1e-9)


def test_resnet18_takes_and_gives_torchs_state():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(1, 3, 48, 48)).astype(np.float32)
    ours, theirs = models.resnet18().eval(), torch_resnet(torch, (2, 2, 2, 2), 1000).eval()
    ours.load_state_dict(theirs.state_dict())
    expected = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(ours(x).data, expected, atol=1e-4 * np.abs(expected).max())
    state = {name: torch.tensor(t.numpy()) for name, t in models.resnet18().state_dict().items()}
    theirs.load_state_dict(state)


def test_cifar_shortcut_pads_channels():
    x = np.random.default_rng(0).normal(size=(2, 16, 8, 8)).astype(np.float32)
    shortcut = models.resnet20().layer2[0].downsample
    x_tensor = Tensor(x, requires_grad=True)
    y = shortcut(x_tensor)
    expected = np.zeros((2, 32, 4, 4), np.float32)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    np.testing.assert_array_equal(y.data, expected)
    y.sum().backward()
    assert x_tensor.grad.data.sum() == y.data[:, 8:24].size


@pytest.mark.parametrize(("name", "shape"), [("mlp", (2, 1, 28, 28)), ("resnet20", (2, 3, 32, 32))])
def test_forward_and_backward(name, shape):
    model = models.get(name)
    y = model(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    assert y.shape == (2, 10)
    F.cross_entropy(y, np.array([1, 2])).backward()
    assert all(np.isfinite(p.grad.data).all() and (p.grad.data != 0).any() for p in model.parameters())


def test_bottleneck_shapes():
    block = models.resnet.Bottleneck(16, 8, stride=2, shortcut=nn.Conv2d(16, 32, 1, 2))
    assert block(np.zeros((1, 16, 6, 6), np.float32)).shape == (1, 32, 3, 3)


def test_vgg_and_alexnet_stages(without_values):
    x = np.zeros((1, 3, 64, 64), np.float32)
    for name, channels, size in (("vgg11_bn", 512, 2), ("alexnet", 256, 1)):
        features = models.get(name).features.eval()
        for tensor in features.state_dict().values():
            tensor.data[...] = 0
        assert features(x).shape == (1, channels, size, size)


def test_summary_of_lenet():
    lines = models.lenet().summary((1, 28, 28)).splitlines()
    assert lines[2].split() == ["0", "Conv2d", "(N,", "6,", "28,", "28)", "156"]
    assert lines[-2].split() == ["total", "61,706"]
