"""`python -m holdfast`, for launchers such as `accelerate launch -m holdfast tune ...`."""

from .cli import main

main()
