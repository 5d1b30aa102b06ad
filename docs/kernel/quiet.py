"""What each notebook of the site does first, unseen: libraries keep quiet, commands may not fail.

`conf.py` puts this folder where the notebooks find it.
"""

import logging
import os
import subprocess
import sys
import warnings

from IPython import get_ipython

os.environ |= {"TQDM_DISABLE": "1", "COLUMNS": "96", "NO_COLOR": "1"}
warnings.filterwarnings("ignore")


def bash(_line: str, cell: str) -> None:
    """`%%bash`, but for its output: whole, not in pieces that the site would break into lines.

    Raises:
        RuntimeError: If the commands fail, with what they said; that stops the build.
    """
    done = subprocess.run(
        ["bash", "-e", "-c", cell], capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"ended with {done.returncode}: {done.stdout}{done.stderr}")
    sys.stdout.write(done.stdout)


get_ipython().register_magic_function(bash, "cell", "bash")

import datasets  # noqa: E402
import transformers  # noqa: E402

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
logging.getLogger("moorline").setLevel(logging.ERROR)
