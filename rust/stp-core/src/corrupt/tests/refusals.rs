//! What is refused, and whether the message says how to fix it.

use super::*;

#[test]
fn wrong_calls_say_what_they_need() {
    let text = |result: Result<Drawn>| result.unwrap_err().to_string();
    let cover = design("cover", 2);
    assert!(text(Case::row(3, &[3, 1]).draw(&cover, 0, &[1, 2], 0)).contains("uids"));
    assert!(text(Case::row(3, &[3, 1]).draw(&cover, 0, &[1], 70_000)).contains("iteration"));
    let mut case = Case::row(3, &[3, 1]);
    case.eligible[1] = 2;
    assert!(text(case.draw(&cover, 0, &[1], 0)).contains("0 or 1"));
    let mut case = Case::row(3, &[3, 1]);
    case.unmask_counts[0] = 4;
    assert!(text(case.draw(&cover, 0, &[1], 0)).contains("start at 3"));
    let error = Design::new("covr", Options::default()).unwrap_err().to_string();
    assert!(error.contains("covr") && error.contains("uniform_count"));
    assert!(Design::new("cover", Options { num_mc: 0, ..Options::default() }).is_err());
    assert!(Design::new("cover", Options { num_mc: 1 << 20, ..Options::default() }).is_err());
    let case = Case::row(3, &[3, 1]);
    let (mut mask, mut weight, mut row) = (vec![0; 9], vec![0.0; 9], vec![0; 3]);
    let mut out = Out { mask: &mut mask, weight: &mut weight, row: &mut row };
    let keys = Keys { seed: 0, uids: &[0], iteration: 0 };
    let error = cover.draw(&case.batch(), &keys, &mut out, &mut Scratch::default());
    assert!(error.unwrap_err().to_string().contains("row"));
}

fn refusal(name: &str, options: Options) -> String {
    Design::new(name, options).unwrap_err().to_string()
}

#[test]
fn options_that_do_not_fit_are_named() {
    let base = Options::default();
    assert!(refusal("coupled", Options { num_mc: 3, ..base }).contains("2 or 4"));
    assert!(refusal("pairs", Options { num_mc: 1, ..base }).contains("2 to"));
    assert!(refusal("sink", Options { num_mc: 65, ..base }).contains("1 to 64"));
    assert!(refusal("block_random", base).contains("block_length"));
    assert!(refusal("unigrpo", Options { num_iterations: 0, ..base }).contains("num_iterations"));
    assert!(
        refusal("cover", Options { truncate: Some((0.2, 0.8)), ..base })
            .contains("bernoulli, coupled, state, canvas do")
    );
    for truncate in [(0.8, 0.2), (-0.1, 0.5), (0.5, 1.1), (f64::NAN, 1.0)] {
        assert!(refusal("coupled", Options { truncate: Some(truncate), ..base }).contains("truncate"));
    }
    assert!(!Design::new("coupled", Options { truncate: Some((0.2, 0.8)), ..base }).unwrap().unbiased());
}

#[test]
fn balanced_names_the_smallest_legal_change() {
    let passes = |num_mc: usize, case: &Case| {
        design("balanced", num_mc).passes(&case.batch(), &mut Scratch::default(), &mut [0])
    };
    for n in 1..=9 {
        for plan in plans(n) {
            let case = Case::row(n, &plan);
            for num_mc in 1..=10 {
                let last = *plan.last().unwrap() as usize;
                let legal = last >= n / num_mc.min(n);
                let result = passes(num_mc, &case);
                assert_eq!(result.is_ok(), legal);
                let Err(error) = result else { continue };
                let text = error.to_string();
                let number = |after: &str| -> usize {
                    let tail = text.split(after).nth(1).unwrap();
                    tail.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
                };
                // both changes are legal, and neither has a smaller legal one
                let (merge, more) = (number("l* = "), number("num_mc = "));
                let merged = |l: usize| -> Vec<i32> {
                    plan.iter().copied().filter(|&count| count as usize >= l).collect()
                };
                assert!(passes(num_mc, &Case::row(n, &merged(merge))).is_ok(), "{text}");
                let below = plan.iter().rev().map(|&l| l as usize).take_while(|&l| l < merge);
                assert!(below.into_iter().all(|l| passes(num_mc, &Case::row(n, &merged(l))).is_err()));
                assert!(passes(more, &case).is_ok(), "{text}");
                assert!((num_mc..more).all(|k| passes(k, &case).is_err()), "{text}");
            }
        }
    }
}

#[test]
fn trajectory_needs_the_realised_plan_of_exactly_the_free_positions() {
    let design = design("trajectory", 0);
    let text = |case: &Case| case.draw(&design, 0, &[1], 0).unwrap_err().to_string();
    let mut prior = Case::row(3, &[3, 1]);
    prior.unmask_step[0] = -1;
    assert!(text(&prior).contains("unmask_step >= 0"));
    let mut missing = Case::row(3, &[3, 1]);
    missing.eligible[2] = 0;
    missing.unmask_counts = vec![2, 1];
    assert!(text(&missing).contains("3 of the row revealed"));
    let mut other = Case::row(3, &[3, 1]);
    other.unmask_counts = vec![3, 2];
    assert!(text(&other).contains("realised plan"));
    let mut fewer = Case::row(3, &[3, 1]);
    fewer.unmask_counts = vec![3, 0];
    assert!(text(&fewer).contains("realised plan"));
    // step numbers may have gaps: only their order counts
    let mut gaps = Case::row(3, &[3, 1]);
    gaps.unmask_step = vec![4, 90, 4];
    let drawn = gaps.draw(&design, 0, &[1], 0).unwrap();
    assert_eq!(drawn.mask, [1, 1, 1, 0, 1, 0]);
    assert_eq!(drawn.weight, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
}

#[test]
fn states_need_a_chance_and_a_range_that_holds_the_canvas() {
    for name in ["state", "canvas", "decision", "top_states"] {
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let case = Case { mass: vec![1.0, bad, 1.0], ..Case::row(3, &[3, 2, 1]) };
            let error = case.draw(&design(name, 2), 0, &[1], 0).unwrap_err().to_string();
            assert!(error.contains("mass") && error.contains("row 0 at step 1"), "{name}: {error}");
        }
        let case = Case { mass: vec![1.0], ..Case::row(3, &[3, 2, 1]) };
        assert!(case.draw(&design(name, 2), 0, &[1], 0).unwrap_err().to_string().contains("mass"));
        let mut prior = Case::row(3, &[3, 1]);
        prior.unmask_step[0] = -1;
        assert!(
            prior.draw(&design(name, 2), 0, &[1], 0).unwrap_err().to_string().contains("unmask_step >= 0")
        );
    }
    let base = Options::default();
    for truncate in [(0.2, 0.8), (1.0, 1.0), (-0.5, 1.0)] {
        assert!(refusal("state", Options { truncate: Some(truncate), ..base }).contains("high = 1"));
    }
    assert!(refusal("decision", Options { truncate: Some((0.5, 1.0)), ..base }).contains("truncate"));
    assert!(refusal("decision", Options { divide_weights: true, ..base }).contains("divide_weights"));
    assert!(refusal("top_states", Options { truncate: Some((0.5, 1.0)), ..base }).contains("truncate"));
    assert!(refusal("top_states", Options { divide_weights: true, ..base }).contains("divide_weights"));
    assert!(refusal("canvas", Options { num_mc: 0, ..base }).contains("1 to"));
}

#[test]
fn unigrpo_knows_its_inner_iterations() {
    let options = Options { num_mc: 1, num_iterations: 3, ..Options::default() };
    let design = Design::new("unigrpo", options).unwrap();
    let case = Case::row(12, &[12, 9, 6, 3]);
    let counts = |uid| {
        [0, 1, 2].map(|i| case.draw(&design, 4, &[uid], i).unwrap().mask.iter().map(|&m| u32::from(m)).sum())
    };
    for uid in 0..40 {
        let [first, middle, last]: [u32; 3] = counts(uid);
        assert!(first % 3 == 0 && first <= middle && middle <= last && last == 12);
        // t_1 = first / 3 steps of 4, then floor((4 - t_1) / 2) more
        assert_eq!(middle, first + 3 * ((4 - first / 3) / 2));
    }
    assert!(case.draw(&design, 4, &[0], 3).unwrap_err().to_string().contains("0 to 2"));
}
