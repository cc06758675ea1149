"""Makes tests/fixtures/pickle: the same tensors as `torch.save` (today and before PyTorch 1.6), scripted modules and safetensors have them.

    python scripts/make_pickle_fixture.py [--out tests/fixtures/pickle]

Needs torch and safetensors.
"""
import argparse, os
from collections import OrderedDict

import torch
from safetensors.torch import save_file

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--out", default=os.path.join(os.path.dirname(__file__), "..", "tests", "fixtures", "pickle"))
out = ap.parse_args().out
os.makedirs(out, exist_ok=True)
torch.manual_seed(0)
base = torch.randn(4, 6)
state = OrderedDict([
    ("layer.weight", base), ("transposed", base.t()), ("rows", base[1:3]), ("column", base[:, 2]),
    ("half", torch.randn(3, 2).half()), ("brain", torch.randn(5).bfloat16()), ("ids", torch.arange(7)),
    ("parameter", torch.nn.Parameter(torch.randn(2, 2))),
])
# What a state dictionary of a module has beside its tensors.
state._metadata = OrderedDict([("", {"version": 1}), ("layer", {"version": 1})])
torch.save(state, f"{out}/pytorch_model.bin")
save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, f"{out}/model.safetensors")
# As files were before PyTorch 1.6; under `teacher`, beside what a training program keeps.
beside = {"epoch": 7, "student": {"layer.weight": torch.zeros(2)}, "args": argparse.Namespace(lr=.1, name="x")}
torch.save({**beside, "teacher": state}, f"{out}/legacy.pth", _use_new_zipfile_serialization=False)


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(state["transposed"].clone())
        self.register_buffer("table", state["half"])
        self.count: int = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Outer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(Inner(), torch.nn.Linear(2, 3))
        self.scale = torch.nn.Parameter(torch.tensor(2.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


module = Outer()
torch.jit.save(torch.jit.script(module), f"{out}/scripted.pt")
save_file({k: v.detach().clone().contiguous() for k, v in module.state_dict().items()}, f"{out}/scripted.safetensors")
for name in os.listdir(out): os.chmod(f"{out}/{name}", 0o644)
