"""A few images of a split for a first look: every class keeps its share of them, and at least one.

datasets.py calls this module before an image is read. It knows no pixels and no task.
"""

from collections import Counter, defaultdict
from heapq import nsmallest

from cnsn_cli.data.sources import Source, take
from cnsn_cli.errors import DataError


def limited(source: Source, most: int | None, data: str) -> Source:
    """At most `most` images of a source of `data`, in their order; None: all of them.

    Raises DataError if a class of the source would lose all its images.
    """
    if most is None:
        return source
    classes = len(set(source.labels))
    if most < classes:
        raise DataError(
            f"--limit-images {most} leaves no image of some of the {classes:,} classes of {data}: give at "
            f"least {classes}"
        )
    return take(source, _chosen(source.labels, most))


def _chosen(labels: list[int], most: int) -> list[int]:
    """The numbers of `most` images, sorted: those of a class are at even distances within the class.

    Image i of the n images of a class gives this class a claim i / n, and the smallest claims win. So every
    class gets its first image before a class gets a second one.
    """
    members = defaultdict(list)
    for number, label in enumerate(labels):
        members[label].append(number)
    claims = ((i / len(own), label) for label, own in members.items() for i in range(len(own)))
    shares = Counter(label for _, label in nsmallest(most, claims))
    return sorted(
        members[label][i * len(members[label]) // share]
        for label, share in shares.items()
        for i in range(share)
    )
