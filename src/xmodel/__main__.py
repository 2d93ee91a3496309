"""`python -m xmodel`, and what torchrun starts."""

from xmodel.cli import main

if __name__ == "__main__":
    main()
