"""The closed-form label gradient against the literal double-backward version, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from attacks.poisoning.flip.craft import without_running_stats
from attacks.poisoning.flip.gradient import Sgd, logit_gradient, matching_gradient, regularizer_gradient
from redteam.core.seeding import SeedPath
from redteam.learn import models

B, K = 12, 4


def setting(model_name="preact-resnet8", seed=0, dtype=torch.float64):
    """A network in training mode, parameters, momenta, and one batch of both kinds."""
    g = torch.Generator().manual_seed(seed)
    model = models.build(model_name, classes=K, shape=(8, 8, 1), seeds=SeedPath(seed))
    model = without_running_stats(model).to(dtype)
    params = {k: v.detach().clone() for k, v in model.named_parameters()}
    momenta = {k: 0.1 * torch.randn(v.shape, generator=g, dtype=dtype) for k, v in params.items()}
    clean = torch.randn(B, 1, 8, 8, generator=g, dtype=dtype)
    stamped = clean + 0.3 * (torch.arange(B) < 3).to(dtype)[:, None, None, None]
    labels = torch.randint(0, K, (B,), generator=g)
    logits = 5 * F.one_hot(labels, K).to(dtype) + torch.randn(B, K, generator=g, dtype=dtype)
    return (lambda p, x: functional_call(model, p, (x,))), params, momenta, stamped, clean, labels, logits


def literal(forward, params, momenta, stamped, clean, labels, logits, sgd, lr=0.1):
    """Both SGD steps written out as the optimiser takes them, and autograd through the student's."""
    logits = logits.clone().requires_grad_(True)
    leaves = {k: v.clone().requires_grad_(True) for k, v in params.items()}

    def step(images, targets, differentiable):
        loss = F.cross_entropy(forward(leaves, images), targets)
        grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=differentiable)
        out = {}
        for (k, theta), g in zip(leaves.items(), grads, strict=True):
            g = g + sgd.weight_decay * theta.detach()
            buffer = sgd.momentum * momenta[k] + g
            out[k] = theta.detach() - lr * (g + sgd.momentum * buffer if sgd.nesterov else buffer)
        return out

    expert = {k: v.detach() for k, v in step(stamped, labels, False).items()}
    student = step(clean, logits.softmax(1), True)
    above = sum((student[k] - expert[k]).square().sum() for k in params)
    below = sum((params[k] - expert[k]).square().sum() for k in params)
    loss = above / below
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("model", ["preact-resnet8", "cnn"])
def test_closed_form_is_the_double_backward(model, nesterov):
    """Loss and label gradient agree to 1e-10, relative to the largest entry."""
    forward, params, momenta, stamped, clean, labels, logits = setting(model)
    sgd = Sgd(momentum=0.9, weight_decay=2e-4, nesterov=nesterov)
    loss, gradient = literal(forward, params, momenta, stamped, clean, labels, logits, sgd)
    p = logits.softmax(1)
    ours, by_p = matching_gradient(forward, params, momenta, (stamped, labels), (clean, p), sgd)
    assert abs(ours - loss) <= 1e-10 * loss
    assert (logit_gradient(p, by_p) - gradient).abs().max() <= 1e-10 * gradient.abs().max()
    assert gradient.abs().max() > 1e-8  # the comparison is not of zeros


@pytest.mark.parametrize("model", sorted(models.NAMES))
def test_every_model_can_be_an_expert(model):
    forward, params, momenta, stamped, clean, labels, logits = setting(model, dtype=torch.float32)
    sgd, p = Sgd(0.9, 2e-4, True), logits.softmax(1)
    loss, by_p = matching_gradient(forward, params, momenta, (stamped, labels), (clean, p), sgd)
    assert loss > 0 and by_p.shape == (B, K) and by_p.abs().max() > 0


def test_leaving_out_the_momentum_changes_the_normaliser():
    forward, params, momenta, stamped, clean, labels, logits = setting()
    sgd, p = Sgd(0.9, 2e-4, True), logits.softmax(1)
    with_b, _ = matching_gradient(forward, params, momenta, (stamped, labels), (clean, p), sgd)
    zeros = {k: torch.zeros_like(v) for k, v in momenta.items()}
    without, _ = matching_gradient(forward, params, zeros, (stamped, labels), (clean, p), sgd)
    assert abs(with_b - without) > 1e-3 * with_b


def test_equal_data_and_labels_match_perfectly():
    """If the student sees what the expert sees, the loss and the gradient vanish."""
    forward, params, momenta, _, clean, labels, _ = setting()
    onehot = F.one_hot(labels, K).double()
    sgd = Sgd(0.9, 2e-4, True)
    loss, by_p = matching_gradient(forward, params, momenta, (clean, labels), (clean, onehot), sgd)
    assert loss < 1e-25 and by_p.abs().max() < 1e-12


def test_softmax_chain_rule_against_autograd():
    logits = torch.randn(6, K, dtype=torch.float64, requires_grad=True)
    q = torch.randn(6, K, dtype=torch.float64)
    (logits.softmax(1) * q).sum().backward()
    assert torch.allclose(logit_gradient(logits.softmax(1).detach(), q), logits.grad, atol=1e-14)


def test_regularizer_against_autograd():
    logits = torch.randn(6, K, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, K, (6,))
    (logits.softmax(1) - F.one_hot(labels, K)).abs().sum(1).mean().backward()
    assert torch.allclose(regularizer_gradient(logits.detach(), labels), logits.grad, atol=1e-14)


def test_float32_stays_close():
    forward, params, momenta, stamped, clean, labels, logits = setting()
    sgd, p = Sgd(0.9, 2e-4, True), logits.softmax(1)
    _, exact = matching_gradient(forward, params, momenta, (stamped, labels), (clean, p), sgd)
    low = [{k: v.float() for k, v in part.items()} for part in (params, momenta)]
    plain = models.build("preact-resnet8", classes=K, shape=(8, 8, 1), seeds=SeedPath(0))
    model = without_running_stats(plain)
    forward = lambda q, x: functional_call(model, q, (x,))  # noqa: E731
    data = (stamped.float(), labels), (clean.float(), p.float())
    _, single = matching_gradient(forward, *low, *data, sgd)
    assert (single - exact).abs().max() <= 1e-4 * exact.abs().max()
