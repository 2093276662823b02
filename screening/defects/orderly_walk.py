"""The compiled inner loops of orderly generation; the idea is explained in screening.defects.enumeration.

A sequence is two int64 arrays: sites, ascending, and codes; a point is one integer, so that points compare as such.

Nearly all the time goes into asking whether a canonical sequence P and one more point s are canonical. For an operation
that carries a point of P onto the smallest site, the image Q of P is not below P. Let P_j be the first point of P at
which they differ, or s if Q = P; let t be the image of s. Then Q with t is below P with s if t < P_j, above it if
t > P_j (Q_j or t stand at place j), and only t = P_j needs the whole comparison. So each operation turns, once for all
points that may follow P, the sites that it forbids into a *verdict* for each site, in loops that the compiler
vectorises; what is left per point is mostly to read it. The few operations that carry s itself onto the smallest site
are mostly decided by the smallest site in the image of P.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from screening.defects.checksum import mixed

_ITSELF = -1  # in place of P_j where an operation leaves the prefix as it is
_OPEN, _CLOSER, _FORBIDDEN = np.uint8(0), np.uint8(1), np.uint8(2)  # closer: the image has the site of P_j


class Rules(NamedTuple):
    """What the walk needs to know of a search space and its group.

    Attributes:
        site_codes: (n_sites, n_columns) int64, the codes allowed on each site, ascending, padded with -1.
        codes: (n_types,) int64.
        last_sites: (n_types,) int64, the last site on which each code is allowed.
        min_counts: (n_types,) int64.
        max_counts: (n_types,) int64.
        allowed_pairs: as screening.defects.limits.allowed_pairs gives it.
        permutations: this and the next two as in screening.defects.symmetry.Symmetry.
    """

    site_codes: NDArray[np.int64]
    codes: NDArray[np.int64]
    last_sites: NDArray[np.int64]
    min_counts: NDArray[np.int64]
    max_counts: NDArray[np.int64]
    allowed_pairs: NDArray[np.bool_]
    permutations: NDArray[np.int16]
    to_representative: NDArray[np.int16]
    representatives: NDArray[np.int16]


@numba.njit(cache=True)
def open_depth(path_sites, path_columns, depth, n_columns):  # type: ignore[no-untyped-def]
    """Stand just before the first point that may follow at this depth."""
    path_sites[depth] = path_sites[depth - 1] if depth > 0 else -1
    path_columns[depth] = n_columns


@numba.njit(cache=True)
def fill(  # type: ignore[no-untyped-def]
    out_sites, out_codes, out_multiplicity, path_sites, path_columns, depth, last_sites, last_codes, n_after, rules
):
    """Walk on until the block is full or all is done up to the last prefix; returns rows, and depth or -1 when done.

    The sequences are beginnings of configurations with `n_after` more defects: those that no such configuration
    can begin with, by its limits, are passed over.
    """
    n_defects = len(path_sites)
    path_codes = np.empty(n_defects, np.int64)
    notes = _no_notes(n_defects, rules)
    for d in range(depth + 1):
        if d > 0:
            path_codes[d - 1] = rules.site_codes[path_sites[d - 1], path_columns[d - 1]]
        _note(path_sites, path_codes, d, n_defects + n_after - d - 1, rules, notes)
    n_rows = 0
    while depth >= 0 and n_rows < len(out_sites):
        if not _next_point(path_sites, path_columns, depth, rules.site_codes, notes[0][depth]):
            depth -= 1
            continue
        path_codes[depth] = rules.site_codes[path_sites[depth], path_columns[depth]]
        if depth < len(last_sites) and _compare(path_sites, path_codes, last_sites, last_codes, depth + 1) > 0:
            return n_rows, -1
        same = _stabilizer(path_sites, path_codes, depth, rules, notes)
        if same == 0:
            continue
        if depth + 1 < n_defects:
            depth += 1
            open_depth(path_sites, path_columns, depth, rules.site_codes.shape[1])
            _note(path_sites, path_codes, depth, n_defects + n_after - depth - 1, rules, notes)
        else:
            for d in range(n_defects):
                out_sites[n_rows, d] = path_sites[d]
                out_codes[n_rows, d] = path_codes[d]
            out_multiplicity[n_rows] = len(rules.permutations) // same
            n_rows += 1
    return n_rows, depth


@numba.njit(cache=True)
def estimate_rows(prefix_sites, prefix_codes, n_after, n_probes, seed, rules):  # type: ignore[no-untyped-def]
    """(n_prefixes,) float64: how many configurations with `n_after` more defects begin with each prefix, about.

    Knuth (Math. Comput. 29, 122 (1975)): a probe goes down the tree, each time to a child chosen at random; the
    product of the numbers of children met on the way is an unbiased estimate of the number of leaves.
    """
    n_prefixes, n_prefix = prefix_sites.shape
    n_defects = n_prefix + n_after
    path_sites, path_columns = np.empty(n_defects, np.int64), np.empty(n_defects, np.int64)
    path_codes = np.empty(n_defects, np.int64)
    notes = _no_notes(n_defects, rules)
    estimates = np.zeros(n_prefixes, np.float64)
    state = np.uint64(seed)
    for i in range(n_prefixes):
        path_sites[:n_prefix], path_codes[:n_prefix] = prefix_sites[i], prefix_codes[i]
        for _ in range(n_probes):
            n_leaves = 1.0
            for depth in range(n_prefix, n_defects):
                open_depth(path_sites, path_columns, depth, rules.site_codes.shape[1])
                _note(path_sites, path_codes, depth, n_defects - depth - 1, rules, notes)
                n_children, chosen_site, chosen_code = 0, 0, 0
                while _next_point(path_sites, path_columns, depth, rules.site_codes, notes[0][depth]):
                    path_codes[depth] = rules.site_codes[path_sites[depth], path_columns[depth]]
                    if _stabilizer(path_sites, path_codes, depth, rules, notes) > 0:
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


@numba.njit(cache=True, forceinline=True)
def _next_point(path_sites, path_columns, depth, site_codes, verdicts):  # type: ignore[no-untyped-def]
    """Move to the next point at this depth that is not forbidden by its site; False when there is none."""
    n_sites, n_columns = site_codes.shape
    site, column = path_sites[depth], path_columns[depth] + 1
    while True:
        if column < n_columns and site_codes[site, column] >= 0 and verdicts[site] < _FORBIDDEN:
            path_sites[depth], path_columns[depth] = site, column
            return True
        site += 1
        column = 0
        if site >= n_sites:
            return False


@numba.njit(cache=True)
def _no_notes(n_defects, rules):  # type: ignore[no-untyped-def]
    """Arrays for what `_note` writes down about the sequences of a path, by their length."""
    n_operations = n_defects * rules.to_representative.shape[1]
    return (
        np.empty((n_defects, len(rules.site_codes)), np.uint8),  # verdict on each site that may follow
        np.empty((n_defects, len(rules.codes)), np.int64),  # the last site on which each code may follow
        np.empty(
            (n_defects, n_operations), np.int64
        ),  # operations that carry a point onto the first site, but identity
        np.empty((n_defects, n_operations), np.int64),  # the point P_j of each
        np.empty(n_defects, np.int64),  # their number
        np.empty((2, n_defects), np.int64),  # room for an image
    )


@numba.njit(cache=True)
def _note(sites, codes, length, n_left, rules, notes):  # type: ignore[no-untyped-def]
    """Note what all points that may follow a canonical sequence have in common; `n_left` more follow after them."""
    verdicts, last_sites, operations, points, n_operations, image = notes
    _note_codes(codes, length, n_left, rules, last_sites[length])
    _note_sites(sites, length, rules, verdicts[length])
    n = 0
    for i in range(length):
        if rules.representatives[sites[i]] != sites[0] or codes[i] != codes[0]:
            continue
        for column in range(rules.to_representative.shape[1]):
            operation = rules.to_representative[sites[i], column]
            if operation < 0:
                break
            if operation == 0:
                continue
            _image(sites, codes, length, rules.permutations[operation], image[0], image[1])
            j = 0
            while j < length and image[0, j] == sites[j] and image[1, j] == codes[j]:
                j += 1
            operations[length, n] = operation
            points[length, n] = _point(sites[j], codes[j]) if j < length else _ITSELF
            site = sites[j] if j < length else _ITSELF
            _note_operation(rules.permutations[operation], site, sites[length - 1] + 1, verdicts[length])
            n += 1
    n_operations[length] = n


@numba.njit(cache=True)
def _note_sites(sites, length, rules, verdicts):  # type: ignore[no-untyped-def]
    """Forbid sites whose orbit has a smaller site than the first one, and those of forbidden pairs."""
    for site in range(len(verdicts)):
        first = sites[0] if length > 0 else site
        verdicts[site] = _FORBIDDEN if rules.representatives[site] < first else _OPEN
    if len(rules.allowed_pairs) > 0:
        for d in range(length):
            for site in range(len(verdicts)):
                if not rules.allowed_pairs[sites[d], site]:
                    verdicts[site] = _FORBIDDEN


@numba.njit(cache=True)
def _note_operation(permutation, smallest, start, verdicts):  # type: ignore[no-untyped-def]
    """Add an operation's verdict on the sites from `start` on, given the site of P_j."""
    # slices, indices from 0 and narrow types: otherwise the loop is not vectorised, and ten times slower
    images, found = permutation[start:], verdicts[start:]
    for i in range(len(found)):
        limit = np.int16(start + i) if smallest == _ITSELF else np.int16(smallest)
        verdict = _FORBIDDEN if images[i] < limit else (_CLOSER if images[i] == limit else _OPEN)
        found[i] = max(found[i], verdict)


@numba.njit(cache=True)
def _note_codes(path_codes, length, n_left, rules, last_sites):  # type: ignore[no-untyped-def]
    """Up to which site each code may follow, -1 for none.

    None occurs too often, and `n_left` points on later sites must be able to mend those that occur too seldom.
    """
    for following in range(len(rules.codes)):
        n_missing = 0
        last_sites[following] = rules.last_sites[following]
        for t in range(len(rules.codes)):
            count = int(t == following)
            for d in range(length):
                if path_codes[d] == rules.codes[t]:
                    count += 1
            if count > rules.max_counts[t]:
                last_sites[following] = -1
            if count < rules.min_counts[t]:
                n_missing += rules.min_counts[t] - count
                last_sites[following] = min(last_sites[following], rules.last_sites[t] - 1)
        if n_missing > n_left:
            last_sites[following] = -1


@numba.njit(cache=True, forceinline=True)
def _stabilizer(sites, codes, depth, rules, notes):  # type: ignore[no-untyped-def]
    """Order of the stabilizer of a noted sequence and the point at `depth`; 0 if not canonical, or not allowed."""
    verdicts, last_sites, operations, points, n_operations, image = notes
    site, code = sites[depth], codes[depth]
    is_in_first_orbit = rules.representatives[site] == sites[0]
    if verdicts[depth, site] >= _FORBIDDEN or (is_in_first_orbit and code < codes[0]):
        return 0
    for t in range(len(rules.codes)):
        if rules.codes[t] == code and site > last_sites[depth, t]:
            return 0
    same = int(depth > 0)  # the identity; of a single point it is one of those that carry it onto the first site
    if verdicts[depth, site] == _CLOSER:
        for k in range(n_operations[depth]):
            moved = _point(rules.permutations[operations[depth, k], site], code)
            noted = points[depth, k]
            if noted == _ITSELF:
                same += int(moved == _point(site, code))
            elif moved < noted:
                return 0
            elif moved == noted:
                order = _order_of_image(sites, codes, depth + 1, rules.permutations[operations[depth, k]], image)
                if order < 0:
                    return 0
                same += int(order == 0)
    if not is_in_first_orbit or code != codes[0]:
        return same
    more = _same_onto_first(sites, codes, depth, rules, image)
    return 0 if more < 0 else same + more


@numba.njit(cache=True)
def _same_onto_first(sites, codes, depth, rules, image):  # type: ignore[no-untyped-def]
    """How many operations that carry the last point onto the first site give the same sequence; -1: one a smaller."""
    same = 0
    for column in range(rules.to_representative.shape[1]):
        operation = rules.to_representative[sites[depth], column]
        if operation < 0:
            break
        if depth > 0:
            second = rules.permutations[operation, sites[0]]
            for d in range(1, depth):
                second = min(second, rules.permutations[operation, sites[d]])
            if second > sites[1]:
                continue
            if second < sites[1]:
                return -1
        order = _order_of_image(sites, codes, depth + 1, rules.permutations[operation], image)
        if order < 0:
            return -1
        same += int(order == 0)
    return same


@numba.njit(cache=True, forceinline=True)
def _point(site, code):  # type: ignore[no-untyped-def]
    """A point as one integer; codes fit 15 bits."""
    return np.int64(site) << 16 | np.int64(code)


@numba.njit(cache=True)
def _order_of_image(sites, codes, length, permutation, image):  # type: ignore[no-untyped-def]
    """-1, 0 or 1 as the image of a sequence is smaller, equal or larger than itself."""
    _image(sites, codes, length, permutation, image[0], image[1])
    return _compare(image[0], image[1], sites, codes, length)


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
