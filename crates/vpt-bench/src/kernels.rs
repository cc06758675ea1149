//! What the machine can do at most, and what share of it the kernels reach at the shapes of a backbone.

use std::time::Instant;

use serde::Serialize;

use vpt_base::parallel;
use vpt_base::random::{normal, stream};
use vpt_base::{Error, Result};
use vpt_kernel::attention::AttentionScratch;
use vpt_kernel::{
    Attention, AttentionVjp, Init, Isa, Kept, Mat, MatMut, PanelRange, Panels, Precision, isa, matmul, multiply_adds,
    row_stride,
};

/// What `vpt bench kernels` measures.
#[derive(Debug, Clone, Copy)]
pub struct KernelOptions {
    /// Rows that a thread works on: tokens of the images it takes at a time.
    pub rows: usize,
    /// Width D of a token.
    pub width: usize,
    /// Tokens of a sequence in attention.
    pub tokens: usize,
    /// Threads that work side by side, each on its own.
    pub threads: usize,
    /// Rounds, of which the fastest counts: what is asked for is what the code can do, not what else the machine does.
    pub repeats: usize,
}

/// The JSON of `vpt bench kernels`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelReport {
    /// Instructions in use.
    pub isa: &'static str,
    /// Threads that worked side by side.
    pub threads: usize,
    /// One for each kernel and number format.
    pub kernels: Vec<KernelRow>,
}

/// A kernel's speed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelRow {
    /// What was computed.
    pub kernel: String,
    /// Number format of what is multiplied.
    pub precision: Precision,
    /// 10⁹ floating point operations a second, all threads together.
    pub gflop_per_s: f64,
    /// Share of what registers alone allow in this format, in [0, 1].
    pub share_of_peak: f64,
}

/// Measures.
///
/// # Errors
/// A number is zero or has no room in memory.
pub fn kernels(options: &KernelOptions, note: &mut dyn FnMut(&str)) -> Result<KernelReport> {
    let KernelOptions { rows, width, tokens, threads, repeats } = *options;
    for (field, value, most) in [
        ("rows", rows, 100_000),
        ("width", width, 16_384),
        ("tokens", tokens, 10_000),
        ("threads", threads, 1024),
        ("repeats", repeats, 10_000),
    ] {
        if value == 0 || value > most {
            return Err(Error::setting(field, format!("{value} is not a number from 1 to {most}")));
        }
    }
    let mut report = KernelReport { isa: name(isa()), threads, kernels: Vec::new() };
    for precision in [Precision::F32, Precision::Bf16] {
        let peak = fastest(options, &|| multiply_adds(4_000_000, precision));
        let mut add = |kernel: String, rate: f64| {
            note(&format!("{kernel}, {precision}: {rate:.0} GFLOP/s"));
            report.kernels.push(KernelRow { kernel, precision, gflop_per_s: rate, share_of_peak: rate / peak });
        };
        add("registers alone".to_owned(), peak);
        for (k, n) in [(width, width), (width, 4 * width), (4 * width, width)] {
            for transposed in [false, true] {
                let how = if transposed { ", weight read the other way round" } else { "" };
                let rate = fastest(options, &product(rows, k, n, precision, transposed));
                add(format!("product {rows} x {k} x {n}{how}"), rate);
            }
        }
        for backward in [false, true] {
            let what = if backward { "VJP of attention" } else { "attention" };
            let rate = fastest(options, &attention(tokens, width, precision, backward));
            add(format!("{what}, {tokens} tokens of width {width}"), rate);
        }
    }
    Ok(report)
}

fn name(isa: Isa) -> &'static str {
    match isa {
        Isa::Avx512Bf16 => "AVX-512 with bfloat16",
        Isa::Avx512 => "AVX-512",
        Isa::Avx2 => "AVX2 with FMA",
        Isa::Portable => "portable",
    }
}

/// Runs `work` on every thread, which returns its operations; 10⁹ of them a second in the fastest round.
fn fastest(options: &KernelOptions, work: &(dyn Fn() -> f64 + Sync)) -> f64 {
    let mut best = 0_f64;
    // The first one fills caches and buffers.
    for round in 0..=options.repeats {
        let begin = Instant::now();
        let done: f64 = parallel::shares(options.threads, options.threads, |_| work()).into_iter().sum();
        let rate = done / begin.elapsed().as_secs_f64() / 1e9;
        if round > 0 {
            best = best.max(rate);
        }
    }
    best
}

fn random(n: usize) -> Vec<f32> {
    let mut rng = stream(1, "bench kernels", 0, 0);
    (0..n).map(|_| normal(&mut rng)).collect()
}

/// Products of `[rows, k]` and a packed `[k, n]`, some at a time so that starting a thread does not count.
fn product(rows: usize, k: usize, n: usize, precision: Precision, transposed: bool) -> impl Fn() -> f64 + Sync {
    let weight = random(k * n);
    let weight = if transposed { Mat::new(&weight, n, k, k) } else { Mat::new(&weight, k, n, n) };
    let panels = Panels::pack_as(weight, precision);
    let stride = row_stride(k);
    let x = random(rows * stride);
    let flop = 2. * (rows * k * n) as f64;
    let times = (2e9 / flop).ceil() as usize;
    move || {
        let mut y = vec![0.; rows * row_stride(n)];
        for _ in 0..times {
            let part = if transposed { panels.t() } else { PanelRange::from(&panels) };
            matmul(Mat::new(&x, rows, k, stride), part, MatMut::new(&mut y, rows, n, row_stride(n)), Init::Zero);
        }
        std::hint::black_box(&y);
        times as f64 * flop
    }
}

/// Attention of one sequence with heads of 64, forward or back.
fn attention(tokens: usize, width: usize, precision: Precision, backward: bool) -> impl Fn() -> f64 + Sync {
    let heads = (width / 64).max(1);
    let width = width / heads * heads;
    let (q, kv) = (random(tokens * width), random(tokens * 2 * width));
    let product = 2. * (tokens * tokens * width) as f64;
    let times = (1e9 / product).ceil() as usize;
    move || {
        let call = Attention {
            heads,
            queries: Mat::new(&q, tokens, width, width),
            keys_values: Mat::new(&kv, tokens, 2 * width, 2 * width),
            prompts: None,
            causal: false,
            precision,
        };
        let (mut kept, mut scratch) = (Kept::new(precision), AttentionScratch::default());
        let (mut out, mut wide) = (vec![0.; tokens * width], vec![0.; tokens * 2 * width]);
        call.forward(&mut MatMut::new(&mut out, tokens, width, width), Some((&mut kept, 0)), &mut scratch);
        let gradient = out.clone();
        for _ in 0..times {
            if backward {
                let (mut dq, mut dkv) =
                    (MatMut::new(&mut out, tokens, width, width), MatMut::new(&mut wide, tokens, 2 * width, 2 * width));
                let to = AttentionVjp { tokens: Some((&mut dq, &mut dkv)), prompts: None };
                call.vjp((&kept, 0), Mat::new(&gradient, tokens, width, width), to, &mut scratch);
            } else {
                call.forward(&mut MatMut::new(&mut out, tokens, width, width), Some((&mut kept, 0)), &mut scratch);
            }
        }
        std::hint::black_box((&out, &wide));
        // Q Kᵀ and P V; dP, dV, dK and dQ.
        times as f64 * product * if backward { 4. } else { 2. }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_has_a_rate_and_a_share() {
        let options = KernelOptions { rows: 20, width: 64, tokens: 10, threads: 2, repeats: 1 };
        let report = kernels(&options, &mut |_| {}).unwrap();
        assert_eq!(report.kernels.len(), 2 * (1 + 6 + 2));
        for row in &report.kernels {
            assert!(row.gflop_per_s > 0. && row.share_of_peak > 0., "{row:?}");
        }
        let error = kernels(&KernelOptions { rows: 0, ..options }, &mut |_| {}).unwrap_err().to_string();
        assert!(error.starts_with("rows: 0 is not"), "{error}");
    }
}
