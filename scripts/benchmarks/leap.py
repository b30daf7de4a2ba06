"""The training step of configs/flickr8k.py:leap beside that of VSE++."""

from benchmarks import step
from benchmarks.timing import Options, Row, alternately, rate, ratio


def run(options: Options) -> list[Row]:
    """Steps a second of both at batch 128, 1,024 channels, 300-d words."""
    configs = {"VSE++": step.config(), "LEAP": step.config("leap")}
    vsepp = configs["VSE++"]
    captions = step.captions_of(options, vsepp)
    steps = {name: step.OurStep(conf, captions.vocabulary) for name, conf in configs.items()}
    width = steps["VSE++"].params["image"]["head"]["project"]["kernel"].shape[0]
    given = step.batches(captions, vsepp.train.batch_size, width)
    timings = alternately(
        {
            name: lambda number, one=one: one(given[number % len(given)])
            for name, one in steps.items()
        },
        options.rounds or 20,
    )
    rows = [rate("leap", name, timing, 1, "steps/s", captions.source)
            for name, timing in timings.items()]  # fmt: skip
    parts = configs["LEAP"].objective.quantizer.parts
    return [
        *rows,
        ratio(
            "leap", "time of LEAP / VSE++", timings["LEAP"], timings["VSE++"], at_most=1.15,
            note=f"all its terms, {parts} bytes of code",
        ),
    ]  # fmt: skip
