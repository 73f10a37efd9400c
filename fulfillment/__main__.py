"""Starts the `fulfillment` command; what it imports takes a moment, in which Ctrl-C may come."""


def main() -> None:
    """Run the command line; end with 130 on Ctrl-C, however early."""
    try:
        from fulfillment import cli

        cli.main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
