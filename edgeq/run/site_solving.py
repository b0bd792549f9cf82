"""Solve the layers that read one input: as one matrix where a device works on all their rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgeq.errors import EdgeqError, NotPositiveDefinite
from edgeq.grids.limits import check_size
from edgeq.recipe.setting_rules import AUTOMATIC
from edgeq.solving.row_chunks import solve_rows, solve_stacked
from edgeq.solving.site import Layer, SiteFactors, prepare_site
from edgeq.solving.statistics import statistics_of
from edgeq.sources.reading import largest_magnitude, weight_reader
from edgeq.stopwatch import timed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgeq.protocols import Site
    from edgeq.recipe.layer_grids import Grids
    from edgeq.run.pipeline import Job
    from edgeq.run.report import RunReport
    from edgeq.solving.lending import Lender
    from edgeq.solving.report import LayerReport
    from edgeq.types import BlockSpec, LinearSpec, NumpyArray, QuantizedLinear


@dataclass(frozen=True, slots=True)
class Solved:
    """A layer that was solved, from which weight, and how that came out."""

    weight: NumpyArray
    layer: QuantizedLinear
    report: LayerReport


class SiteSolver:
    """Solves the sites of one block."""

    def __init__(self, job: Job, grids: Grids, block: BlockSpec, lender: Lender) -> None:
        self._job, self._grids, self._lender = job, grids, lender
        self._read = weight_reader(job.source, block)
        decoder = job.source.record.decoder
        inside = decoder.block_name(block.index)
        self._sites = [
            [linear.inside(inside).name for linear in site]
            for site in decoder.layers[block.index].sites
        ]

    def solve(
        self, site: Site, findings: RunReport
    ) -> Iterator[tuple[LinearSpec, QuantizedLinear]]:
        """Solve the layers of a site in execution order; each feeds the quantized stream."""
        job, lender = self._job, self._lender
        with job.clock("statistics"):
            moments, lent = lender.moments(site)
            reached = moments.n_tokens
            statistics, split = statistics_of(site.name, moments, job.backend)
        try:
            with job.clock("factor"):
                factors = prepare_site(statistics, job.recipe, job.backend, split=split)
        except NotPositiveDefinite as error:
            raise EdgeqError(f"inputs of layer {site.name!r}: {error}") from error
        ahead: dict[str, Solved] = {}
        for name in timed(site.layers(), job.clock, "forward passes"):
            linear = lender.linears[name]
            if self._grids[linear.tensor][1] is None:
                continue
            if name not in ahead:
                ahead = self._solve_together(self._stack(linear), factors)
            solved = ahead.pop(name)
            report = solved.report
            if linear.expert is not None:
                report = replace(report, expert=linear.expert, tokens=reached, lent_share=lent)
            if lender.weights is not None:
                report = replace(report, counting_tokens=statistics.n_tokens)
            findings.layers.append(report)
            findings.note_clamped(linear.tensor, solved.weight, solved.layer)
            site.replace(linear.name, solved.layer)
            yield linear, solved.layer

    def _stack(self, first: LinearSpec) -> list[LinearSpec]:
        """List the layers to solve as one: of one input and grid, in a row, from the first on.

        Rows do not depend on one another; where all of them are worked on together, one matrix
        takes fewer operations than several.
        """
        recipe, linears = self._job.recipe, self._lender.linears
        grid, strength = self._grids[first.tensor][1], recipe.strength_of(first.name)
        taken, rows = [first], first.shape[0]
        if grid is None or grid.outlier_columns or recipe.anneal_rounds or strength == AUTOMATIC:
            return taken  # what is chosen or drawn for a layer as a whole
        limits = (self._job.rows_at_once, self._job.backend.rows_at_once(first.shape[1]))
        site = next((names for names in self._sites if first.name in names), [first.name])
        for name in site[site.index(first.name) + 1 :]:
            other = linears.get(name)
            if other is None or self._grids[other.tensor][1] != grid:
                break
            rows += other.shape[0]
            if recipe.strength_of(name) != strength or any(
                limit is not None and rows > limit for limit in limits
            ):
                break
            taken.append(other)
        return taken

    def _solve_together(
        self, linears: Sequence[LinearSpec], factors: SiteFactors
    ) -> dict[str, Solved]:
        job, first = self._job, linears[0]
        grid = self._grids[first.tensor][1]
        assert grid is not None, "only layers with a grid are solved"
        weights = [self._checked(linear) for linear in linears]
        W = job.backend.asarray(weights[0] if len(weights) == 1 else np.concatenate(weights))
        rows = {linear.name: linear.shape[0] for linear in linears}
        layer = Layer(first.name, W, grid, factors, job.recipe, rows)
        if len(linears) == 1:
            solved, report = solve_rows(layer, job.clock, rows=job.rows_at_once)
            parts, reports = [solved], [report]
        else:
            parts, reports = solve_stacked(layer, job.clock)
        return {
            name: Solved(weight, part, replace(report, type=grid.type))
            for name, weight, part, report in zip(rows, weights, parts, reports, strict=True)
        }

    def _checked(self, linear: LinearSpec) -> NumpyArray:
        weight = self._read(linear)
        check_size(linear.tensor, largest_magnitude(weight))
        return weight
