"""`python -m moorline`, for launchers such as `accelerate launch -m moorline tune ...`."""

from .commands.cli import main

main()
