"""SGD against PyTorch's, and its weight decay against the formula."""

import pytest
import torch

from lmsmith.optim.sgd import SGD


def weights() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (5,))
    ]


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_without_decay_it_equals_pytorch(momentum: float, nesterov: bool) -> None:
    ours, theirs = weights(), weights()
    mine = SGD(
        [{"params": ours, "lr": 0.1, "weight_decay": 0.0}], momentum=momentum, nesterov=nesterov
    )
    peer = torch.optim.SGD(theirs, lr=0.1, momentum=momentum, nesterov=nesterov)
    generator = torch.Generator().manual_seed(1)
    for share in (1.0, 1.0, 0.5, 0.1):
        mine.param_groups[0]["lr"] = peer.param_groups[0]["lr"] = 0.1 * share
        for a, b in zip(ours, theirs, strict=True):
            a.grad = b.grad = torch.randn(a.shape, generator=generator, dtype=torch.float64)
        mine.step()
        peer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def test_decay_is_decoupled() -> None:
    """With a zero gradient, weights shrink by lr * decay, and the momentum stays zero."""
    (w, _) = weights()
    before = w.clone()
    optimizer = SGD([{"params": [w], "lr": 0.1, "weight_decay": 0.5}], momentum=0.9, nesterov=True)
    for _ in range(3):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    torch.testing.assert_close(w, before * 0.95**3, rtol=1e-14, atol=0)
    assert not optimizer.state[w]["momentum"].any()
