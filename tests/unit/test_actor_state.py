"""The optimizer's state before its first step, where it does not make one by itself."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from nemo_axpo.actors.state import _create_moments, optimizer_step


class HostAdam(torch.optim.AdamW):
    """Torch's AdamW with the dummy step of megatron's ``HybridDeviceOptimizer``, which itself needs a GPU."""

    def dummy_step(self):
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = torch.randn_like(param)
        self.step()
        self.zero_grad()


def test_a_state_before_the_first_step_changes_no_weight_and_has_counted_nothing():
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    adam = HostAdam([weight], lr=0.5, weight_decay=0.1)
    optimizer = SimpleNamespace(init_state_fn=None, optimizer=adam, param_groups=adam.param_groups)
    _create_moments(optimizer)
    assert torch.equal(weight.detach(), torch.arange(6.0).reshape(2, 3))
    assert [float(adam.state[weight][name].abs().sum()) for name in ("exp_avg", "exp_avg_sq")] == [0.0, 0.0]
    assert (optimizer_step(optimizer), adam.param_groups[0]["lr"]) == (0, 0.5)

    weight.grad = torch.ones(2, 3)
    adam.step()  # the first step of Adam is its rate, whatever the gradient; the decay is 0.5 · 0.1 of the weight
    assert torch.allclose(weight.detach(), torch.arange(6.0).reshape(2, 3) * 0.95 - 0.5, atol=1e-6)
    before = adam.state[weight]["exp_avg"].clone()
    _create_moments(optimizer)
    assert torch.equal(adam.state[weight]["exp_avg"], before)
