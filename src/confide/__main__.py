"""``python -m confide``: the command, also for ``torchrun --nproc-per-node 2 -m confide train study.toml``."""

from confide.cli import main

if __name__ == "__main__":
    main()
