"""A custom loop becomes one of several processes by a few lines, and gives the same history."""

import difflib
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_distributed_twin_of_the_custom_loop_differs_in_under_ten_lines():
    one, several = (
        (EXAMPLES / name).read_text().splitlines() for name in ("custom_loop.py", "custom_loop_distributed.py")
    )
    changed = [line for line in difflib.ndiff(one, several) if line.startswith("+ ")]
    assert len(changed) < 10, "\n".join(changed)


def test_the_twin_gives_the_history_of_one_process():
    size = ["--steps", "2", "--sft_steps", "4"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    said = [
        subprocess.run(
            [*command, str(EXAMPLES / name), *size], capture_output=True, text=True, timeout=300, check=True
        ).stdout.splitlines()
        for command, name in (([sys.executable], "custom_loop.py"), (launcher, "custom_loop_distributed.py"))
    ]
    closing = "mean reward of the first"
    last = [[line for line in lines if line.startswith(closing)] for lines in said]
    assert last[0] == last[1], said


def test_a_program_that_does_not_leave_its_group_leaves_it_when_it_ends(tmp_path):
    """The group's threads abort a process whose interpreter they outlive, one time out of four."""
    program = tmp_path / "program.py"
    program.write_text(
        "import atexit, os\n"
        "from stp_rs import distributed\n"
        "def say(text): os.write(1, f'{text}\\n'.encode())  # in one piece: both processes write to one pipe\n"
        "atexit.register(lambda: say(f'left {not distributed.is_started()}'))  # called after what start registers\n"
        "distributed.start('cpu')\n"
        "say(len(distributed.gather(lambda: None)))\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n"))[-4:] == ["2", "2", "left True", "left True"], done.stdout
