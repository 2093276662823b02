"""The compiled inner loops of orderly generation; the idea is explained in screening.defects.enumeration.

A sequence is two int64 arrays: sites, ascending, and codes. Group and sites come as the arrays of
screening.defects.symmetry.Symmetry.
"""

from __future__ import annotations

import numba
import numpy as np

from screening.defects.checksum import mixed


@numba.njit(cache=True)
def open_depth(path_sites, path_columns, depth, n_columns):  # type: ignore[no-untyped-def]
    """Stand just before the first point that may follow at this depth."""
    path_sites[depth] = path_sites[depth - 1] if depth > 0 else -1
    path_columns[depth] = n_columns


@numba.njit(cache=True)
def fill(  # type: ignore[no-untyped-def]
    out_sites, out_codes, out_multiplicity, path_sites, path_columns, depth, last_sites, last_codes,
    n_after, site_codes, codes, min_counts, max_counts, allowed_pairs, permutations, to_representative, representatives,
):  # fmt: skip
    """Walk on until the block is full or all is done up to the last prefix; returns rows, and depth or -1 when done.

    The sequences are beginnings of configurations with `n_after` more defects: those that no such configuration
    can begin with, by its limits, are passed over.
    """
    n_defects = len(path_sites)
    path_codes = np.empty(n_defects, np.int64)
    image_sites = np.empty(n_defects, np.int64)
    image_codes = np.empty(n_defects, np.int64)
    for d in range(depth):
        path_codes[d] = site_codes[path_sites[d], path_columns[d]]
    n_rows = 0
    while depth >= 0 and n_rows < len(out_sites):
        if not _next_point(path_sites, path_columns, depth, site_codes):
            depth -= 1
            continue
        path_codes[depth] = site_codes[path_sites[depth], path_columns[depth]]
        if depth < len(last_sites) and _compare(path_sites, path_codes, last_sites, last_codes, depth + 1) > 0:
            return n_rows, -1
        same = _stabilizer_of_allowed(
            path_sites, path_codes, depth + 1, image_sites, image_codes, n_defects + n_after - depth - 1,
            codes, min_counts, max_counts, allowed_pairs, permutations, to_representative, representatives,
        )  # fmt: skip
        if same == 0:
            continue
        if depth + 1 < n_defects:
            depth += 1
            open_depth(path_sites, path_columns, depth, site_codes.shape[1])
        else:
            for d in range(n_defects):
                out_sites[n_rows, d] = path_sites[d]
                out_codes[n_rows, d] = path_codes[d]
            out_multiplicity[n_rows] = len(permutations) // same
            n_rows += 1
    return n_rows, depth


@numba.njit(cache=True)
def estimate_rows(  # type: ignore[no-untyped-def]
    prefix_sites, prefix_codes, n_after, n_probes, seed, site_codes, codes, min_counts, max_counts, allowed_pairs,
    permutations, to_representative, representatives,
):  # fmt: skip
    """(n_prefixes,) float64: how many configurations with `n_after` more defects begin with each prefix, about.

    Knuth (Math. Comput. 29, 122 (1975)): a probe goes down the tree, each time to a child chosen at random; the
    product of the numbers of children met on the way is an unbiased estimate of the number of leaves.
    """
    n_prefixes, n_prefix = prefix_sites.shape
    n_defects = n_prefix + n_after
    path_sites, path_columns = np.empty(n_defects, np.int64), np.empty(n_defects, np.int64)
    path_codes = np.empty(n_defects, np.int64)
    image_sites, image_codes = np.empty(n_defects, np.int64), np.empty(n_defects, np.int64)
    estimates = np.zeros(n_prefixes, np.float64)
    state = np.uint64(seed)
    for i in range(n_prefixes):
        path_sites[:n_prefix], path_codes[:n_prefix] = prefix_sites[i], prefix_codes[i]
        for _ in range(n_probes):
            n_leaves = 1.0
            for depth in range(n_prefix, n_defects):
                open_depth(path_sites, path_columns, depth, site_codes.shape[1])
                n_children, chosen_site, chosen_code = 0, 0, 0
                while _next_point(path_sites, path_columns, depth, site_codes):
                    path_codes[depth] = site_codes[path_sites[depth], path_columns[depth]]
                    if _stabilizer_of_allowed(
                        path_sites, path_codes, depth + 1, image_sites, image_codes, n_defects - depth - 1,
                        codes, min_counts, max_counts, allowed_pairs, permutations, to_representative, representatives,
                    ):  # fmt: skip
                        n_children += 1
                        state += np.uint64(0x9E3779B97F4A7C15)
                        if mixed(state) % np.uint64(n_children) == 0:  # each child is chosen equally often
                            chosen_site, chosen_code = path_sites[depth], path_codes[depth]
                n_leaves *= n_children
                if n_children == 0:
                    break
                path_sites[depth], path_codes[depth] = chosen_site, chosen_code
            estimates[i] += n_leaves / n_probes
    return estimates


@numba.njit(cache=True)
def smallest_image(sites, codes, permutations, to_representative, representatives):  # type: ignore[no-untyped-def]
    """Smallest image of a sequence, and how many operations give it."""
    length = len(sites)
    first = representatives[sites].min()
    best_sites, best_codes = sites.copy(), codes.copy()
    image_sites, image_codes = sites.copy(), codes.copy()
    same = 0
    for i in range(length):
        if representatives[sites[i]] != first:
            continue
        for column in range(to_representative.shape[1]):
            operation = to_representative[sites[i], column]
            if operation < 0:
                break
            _image(sites, codes, length, permutations[operation], image_sites, image_codes)
            order = _compare(image_sites, image_codes, best_sites, best_codes, length)
            if order < 0 or same == 0:
                best_sites[:], best_codes[:] = image_sites, image_codes
                same = 1
            elif order == 0:
                same += 1
    return best_sites, best_codes, same


@numba.njit(cache=True)
def _next_point(path_sites, path_columns, depth, site_codes):  # type: ignore[no-untyped-def]
    """Move to the next allowed point at this depth; False when there is none."""
    n_sites, n_columns = site_codes.shape
    site, column = path_sites[depth], path_columns[depth] + 1
    while True:
        if site >= 0 and column < n_columns and site_codes[site, column] >= 0:
            path_sites[depth], path_columns[depth] = site, column
            return True
        site += 1
        column = 0
        if site >= n_sites:
            return False


@numba.njit(cache=True)
def _stabilizer_of_allowed(  # type: ignore[no-untyped-def]
    path_sites, path_codes, length, image_sites, image_codes, n_left,
    codes, min_counts, max_counts, allowed_pairs, permutations, to_representative, representatives,
):  # fmt: skip
    """Order of the stabilizer of a sequence; 0 if it is not canonical, or the limits forbid all that follows it."""
    if not _counts_allow(path_codes, length, codes, min_counts, max_counts, n_left):
        return 0
    if not _pairs_allow(path_sites, length - 1, allowed_pairs):
        return 0
    return _count_same(
        path_sites, path_codes, length, image_sites, image_codes, permutations, to_representative, representatives
    )


@numba.njit(cache=True)
def _counts_allow(path_codes, length, codes, min_counts, max_counts, n_left):  # type: ignore[no-untyped-def]
    """Whether no code occurs too often, and `n_left` more points can mend those that occur too seldom."""
    n_missing = 0
    for t in range(len(codes)):
        count = 0
        for d in range(length):
            if path_codes[d] == codes[t]:
                count += 1
        if count > max_counts[t]:
            return False
        n_missing += max(0, min_counts[t] - count)
    return n_missing <= n_left


@numba.njit(cache=True)
def _pairs_allow(path_sites, depth, allowed_pairs):  # type: ignore[no-untyped-def]
    """Whether the last site may be beside all those before it; an empty table allows every pair."""
    if len(allowed_pairs) == 0:
        return True
    for d in range(depth):  # noqa: SIM110 - numba compiles no generator expression
        if not allowed_pairs[path_sites[d], path_sites[depth]]:
            return False
    return True


@numba.njit(cache=True)
def _image(sites, codes, length, permutation, image_sites, image_codes):  # type: ignore[no-untyped-def]
    """Image of a sequence under a permutation, sorted by site (insertion sort: sequences are short)."""
    for i in range(length):
        site, code = permutation[sites[i]], codes[i]
        j = i
        while j > 0 and image_sites[j - 1] > site:
            image_sites[j] = image_sites[j - 1]
            image_codes[j] = image_codes[j - 1]
            j -= 1
        image_sites[j] = site
        image_codes[j] = code


@numba.njit(cache=True)
def _compare(a_sites, a_codes, b_sites, b_codes, length):  # type: ignore[no-untyped-def]
    """-1, 0 or 1 as sequence a is lexicographically smaller than, equal to or larger than b."""
    for i in range(length):
        if a_sites[i] != b_sites[i]:
            return -1 if a_sites[i] < b_sites[i] else 1
        if a_codes[i] != b_codes[i]:
            return -1 if a_codes[i] < b_codes[i] else 1
    return 0


@numba.njit(cache=True)
def _count_same(  # type: ignore[no-untyped-def]
    sites, codes, length, image_sites, image_codes, permutations, to_representative, representatives
):
    """Order of the stabilizer of a canonical sequence; 0 for a sequence that is not canonical."""
    first = sites[0]
    for i in range(length):
        if representatives[sites[i]] < first:
            return 0
    same = 0
    for i in range(length):
        if representatives[sites[i]] != first or codes[i] > codes[0]:
            continue
        if codes[i] < codes[0]:
            return 0
        for column in range(to_representative.shape[1]):
            operation = to_representative[sites[i], column]
            if operation < 0:
                break
            _image(sites, codes, length, permutations[operation], image_sites, image_codes)
            order = _compare(image_sites, image_codes, sites, codes, length)
            if order < 0:
                return 0
            if order == 0:
                same += 1
    return same
