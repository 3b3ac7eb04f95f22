"""Run by test_processes.py: evaluates a saved model on questions of files, a little slower than it could."""

import sys
import time

from vistok import GVTForConditionalGeneration, cli

if __name__ == "__main__":
    seconds, *arguments = sys.argv[1:]
    generate = GVTForConditionalGeneration.generate

    def slowly(self, *args, **kwargs):
        time.sleep(float(seconds))
        return generate(self, *args, **kwargs)

    GVTForConditionalGeneration.generate = slowly
    sys.exit(cli.main(arguments))
