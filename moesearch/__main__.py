"""Where ``python -m moesearch`` begins."""

from moesearch.main import main

if __name__ == "__main__":
    main()
