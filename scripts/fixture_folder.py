"""Where scripts that make fixtures put them."""

import argparse, os


def fixture_folder(description, flag="--fixtures"):
    """The folder of fixtures that the command line names, by default that of the tests."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(flag, dest="folder", metavar="FOLDER", default=os.path.join(os.path.dirname(__file__), "..", "tests", "fixtures"))
    return parser.parse_args().folder
