"""`stp-rs env`: the versions and devices of a run, for its report or for a bug report."""

import os
import platform
from typing import Any


def environment() -> dict[str, Any]:
    """Return versions and devices by name."""
    import numpy as np
    import torch
    import transformers

    import stp_rs

    return {
        "stp_rs": stp_rs.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
