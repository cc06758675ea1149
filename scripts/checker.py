"""What the checks that run `vpt` again and again begin with."""

import pathlib, random, shutil


class Checker:
    """A fresh folder, a seeded choice of moments, and what was found wrong."""

    def __init__(self, args):
        self.args, self.rng = args, random.Random(args.seed)
        self.dir = pathlib.Path(args.dir)
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        self.faults = []
