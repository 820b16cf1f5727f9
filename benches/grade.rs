//! Graders: a thousand completions per iteration, on one thread. 100,000 Countdown completions a second are 10 ms.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use stp_tasks::{countdown, math, number, sudoku};

const N: usize = 1000;
const NUMBERS: [i64; 3] = [55, 53, 49];

/// Completions as long as real ones: some reasoning, then an answer, then end tokens.
fn completions(answers: &[&str]) -> Vec<String> {
    let reasoning =
        "We can start by considering the largest number, 55, and subtract 53 from it to get 2. ".repeat(4);
    let one = |i: usize| {
        format!("\n{reasoning}\n</reasoning>\n<answer>\n{}\n</answer><|eot_id|>", answers[i % answers.len()])
    };
    (0..N).map(one).collect()
}

fn grade(c: &mut Criterion) {
    let mut group = c.benchmark_group("grade");
    group.throughput(Throughput::Elements(N as u64));
    let sums = completions(&[
        "\\boxed{55 - 53 + 49}",
        "55-53+49 = 51",
        "(55 \\times 49) / 53",
        "88**77**66",
        "fifty-one",
    ]);
    group.bench_function("countdown", |b| {
        b.iter(|| sums.iter().filter(|t| countdown::grade(t, &NUMBERS, 51).valid()).count());
    });
    let framed: Vec<String> = (0..N).map(|i| format!("[55-{}+49]", i % 60)).collect();
    group.bench_function("countdown_framed", |b| {
        b.iter(|| framed.iter().filter(|t| countdown::grade(t, &NUMBERS, 51).valid()).count());
    });
    let numbers = completions(&["\\boxed{1,200}", "18 dollars", "\\boxed{\\frac{1}{2}}", "none"]);
    group.bench_function("gsm8k", |b| b.iter(|| numbers.iter().filter_map(|t| number::answer(t)).count()));
    let maths = completions(&["\\boxed{\\frac12}", "\\boxed{x^2+2x+1}", "\\boxed{(1, \\sqrt{2})}", "(B)"]);
    group.bench_function("math", |b| {
        b.iter(|| {
            maths.iter().filter(|t| math::compare(math::read(t), "(x+1)^2").found != math::Match::No).count()
        });
    });
    let grids = completions(&["1234341221434321", "1234\n3412\n2143\n4321", "1 2 3 4"]);
    let puzzle = sudoku::Puzzle::from_clues(&sudoku::puzzle(0, 8, 0, 0).unwrap_or(sudoku::grids()[0]));
    group.bench_function("sudoku", |b| {
        b.iter(|| grids.iter().filter(|t| puzzle.grade(t).solved).count());
    });
    group.bench_function("sudoku_generate", |b| {
        b.iter(|| (0..N as u64).filter_map(|uid| sudoku::puzzle(black_box(7), 8, 0, uid).ok()).count());
    });
    group.finish();
}

criterion_group!(benches, grade);
criterion_main!(benches);
