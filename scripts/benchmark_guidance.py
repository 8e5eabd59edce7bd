"""What classifier-free guidance costs: python scripts/benchmark_guidance.py [overrides]

A guided guess of x_0 against one call of the same denoiser with a batch of twice the size, which it cannot do without.
Both run in one process, in turn; printed are the median over rounds of the ratio within a round and the ratio of the
fastest rounds, because machines are noisy.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from hydra import compose, initialize_config_dir

from ddpm_lab.commands.build import build
from ddpm_lab.commands.main import CONFIGS
from ddpm_lab.diffusion.guidance import ClassifierFree

ROUNDS, CALLS = 40, 5


def seconds(call: Callable[[], object]) -> float:
    """For `CALLS` calls."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", ["guidance=classifier_free", *sys.argv[1:]])
    data = build(config, "data")
    system = build(config, "system", **data.spec).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    size, device = config.data.batch_size, system.device
    x, t = torch.randn(size, *data.shape, device=device), torch.full((size,), 500, device=device)
    cond = system.condition(system.denoiser, system.ask(size))
    twice = torch.cat([x, x]), torch.cat([t, t]), cond.beside(cond.null())
    options = system.guidance.keywords | {"w": 1.0}
    guided = ClassifierFree(system.denoiser, **options)

    def plain() -> object:
        return system.denoiser(*twice)

    def ours() -> object:
        return guided(x, t, cond)

    pairs = [(seconds(plain), seconds(ours)) for _ in range(ROUNDS)][2:]  # the first rounds warm up
    ratio = statistics.median(b / a for a, b in pairs)
    fastest = min(b for _, b in pairs) / min(a for a, _ in pairs)
    print(f"twice the batch {1e3 * statistics.median(a for a, _ in pairs) / CALLS:.2f} ms, "
          f"guided {1e3 * statistics.median(b for _, b in pairs) / CALLS:.2f} ms; "
          f"ratio: median of {len(pairs)} rounds {ratio:.3f}, fastest rounds {fastest:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
