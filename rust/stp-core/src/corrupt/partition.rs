//! `balanced` and `ordered`: every free position scored exactly once, with weight 1.

use super::Job;
use super::chance::{Chance, Scope};
use super::row::{Real, Row};
use crate::error::Result;

/// `balanced`: a random partition into K groups; group k is scored in a mask whose count comes from its own stratum.
///
/// One random order, cut into groups (larger ones first). The stratum of group k is the mass that its tokens have
/// when the order is revealed front to back, and one offset places the counts in all strata. The mask of group k is
/// the window of `l_k` positions that starts with it: itself, then later groups, then (around the end) earlier ones.
/// Given the counts, group and mask are uniform, so the expectation is `sum_k |C_k| E[a(l_k)] = E(plan)`.
pub(super) fn balanced<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    let (n, groups) = (job.row.n(), groups(&job.row, job.num_mc()));
    let (small, larger) = (n / groups, n % groups);
    job.chance.turn(Scope::Row);
    shuffled(job);
    // the counts are constant inside cells of the offset whose number is a multiple of both group sizes
    let cells = if larger == 0 { small } else { small * (small + 1) };
    let cell = job.chance.below(cells as u32) as usize;
    let order = &job.work.items;
    let mut start = 0;
    for group in 0..groups {
        let size = small + usize::from(group < larger);
        let below = n - start - size;
        let count = job.row.count_at(below + cell * size / cells + 1);
        let mut pass = job.out.pass();
        let end = start + count;
        pass.mask(&order[start..end.min(n)]);
        pass.mask(&order[..end.saturating_sub(n)]);
        pass.score(&order[start..start + size], 1.0);
        start += size;
    }
}

/// `ordered`: one rollout of the plan in a random order: T nested masks, each scoring what it reveals next.
pub(super) fn ordered<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    job.chance.turn(Scope::Row);
    shuffled(job);
    let order = &job.work.items;
    let n = order.len();
    for (s, &count) in job.row.plan.iter().enumerate() {
        let after = job.row.plan.get(s + 1).map_or(0, |&l| l as usize);
        let mut pass = job.out.pass();
        pass.mask(&order[n - count as usize..]);
        pass.score(&order[n - count as usize..n - after], 1.0);
    }
}

/// The number of groups: no group is empty.
pub(super) fn groups(row: &Row<'_>, num_mc: usize) -> usize {
    num_mc.min(row.n())
}

/// Refuses plans whose smallest count cannot host the smallest group.
///
/// The larger groups come first, in strata that lie above the smallest group, so `floor(n / K)` is all it takes.
pub(super) fn check(row: &Row<'_>, num_mc: usize) -> Result<()> {
    let (n, groups) = (row.n(), groups(row, num_mc));
    let last = row.plan.last().map_or(0, |&l| l as usize);
    let need = n / groups;
    if last >= need {
        return Ok(());
    }
    let merge = row.count_at(need);
    let more = n / (last + 1) + 1;
    Err(row.refuse(
        format!("n = {n}, K = {groups} and a last step that commits {last} tokens"),
        format!(
            "a last step that commits at least {need}: merge the tail of the plan at l* = {merge}, or use \
             num_mc = {more}"
        ),
    ))
}

fn shuffled<C: Chance, W>(job: &mut Job<'_, C, W>) {
    let items = &mut job.work.items;
    items.clear();
    items.extend_from_slice(job.row.free);
    job.chance.shuffle(items);
}
