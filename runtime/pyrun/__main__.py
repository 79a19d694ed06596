"""The entry: `python -m pyrun`, the console script and the launcher on root's PATH come here."""


def main() -> None:
    from pyrun.cli.main import cli

    cli()


if __name__ == "__main__":
    main()
