//! The kernels one by one, at the shapes of a ViT-B/16 with two images a thread: `cargo bench --bench kernels`.
//!
//! `vpt bench kernels` puts the same next to the machine's peak, and `vpt bench step` times a whole step.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vpt::kernel::attention::AttentionScratch;
use vpt::kernel::{
    Activation, Attention, AttentionVjp, Init, Kept, Mat, MatMut, PanelRange, Panels, Precision, layer_norm,
    layer_norm_vjp, matmul, matmul_activate, row_stride,
};

const ROWS: usize = 394;
const WIDTH: usize = 768;
const TOKENS: usize = 197;
const PROMPTS: usize = 50;
const HEADS: usize = 12;

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 % 2003) as f32 - 1001.) / 1001.).collect()
}

fn products(c: &mut Criterion) {
    for precision in [Precision::F32, Precision::Bf16] {
        let mut group = c.benchmark_group(format!("product {precision}"));
        for (k, n) in [(WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)] {
            group.throughput(Throughput::Elements((ROWS * k * n) as u64));
            let (x_stride, y_stride) = (row_stride(k), row_stride(n));
            let (x, weight, bias) = (values(ROWS * x_stride), values(k * n), values(n));
            let (mut y, mut slope) = (vec![0.; ROWS * y_stride], vec![0.; ROWS * y_stride]);
            let panels = Panels::pack_as(Mat::new(&weight, k, n, n), precision);
            let turned = Panels::pack_as(Mat::new(&weight, n, k, k), precision);
            let view = Mat::new(&x, ROWS, k, x_stride);
            for (name, part) in [("", PanelRange::from(&panels)), (" transposed", turned.t())] {
                group.bench_function(format!("{ROWS}x{k}x{n}{name}"), |b| {
                    b.iter(|| matmul(view, part.clone(), MatMut::new(&mut y, ROWS, n, y_stride), Init::Bias(&bias)));
                });
            }
            group.bench_function(format!("{ROWS}x{k}x{n} with QuickGELU"), |b| {
                b.iter(|| {
                    let slope = Some(MatMut::new(&mut slope, ROWS, n, y_stride));
                    let to = MatMut::new(&mut y, ROWS, n, y_stride);
                    matmul_activate(view, &panels, to, &bias, Activation::QuickGelu, slope);
                });
            });
        }
    }
}

fn attention(c: &mut Criterion) {
    for precision in [Precision::F32, Precision::Bf16] {
        let mut group = c.benchmark_group(format!("attention {precision}"));
        group.throughput(Throughput::Elements((TOKENS * (TOKENS + PROMPTS) * WIDTH) as u64));
        let (q, kv, p) = (values(TOKENS * WIDTH), values(TOKENS * 2 * WIDTH), values(PROMPTS * 2 * WIDTH));
        let call = Attention {
            heads: HEADS,
            queries: Mat::new(&q, TOKENS, WIDTH, WIDTH),
            keys_values: Mat::new(&kv, TOKENS, 2 * WIDTH, 2 * WIDTH),
            prompts: Some(Mat::new(&p, PROMPTS, 2 * WIDTH, 2 * WIDTH)),
            causal: false,
            precision,
        };
        let (mut kept, mut scratch) = (Kept::new(precision), AttentionScratch::default());
        let (mut out, mut d_kv, mut d_p) =
            (vec![0.; TOKENS * WIDTH], vec![0.; TOKENS * 2 * WIDTH], vec![0.; PROMPTS * 2 * WIDTH]);
        group.bench_function("forward", |b| {
            b.iter(|| {
                call.forward(&mut MatMut::new(&mut out, TOKENS, WIDTH, WIDTH), Some((&mut kept, 0)), &mut scratch);
            });
        });
        // Also where a filter has left the forward pass out.
        call.forward(&mut MatMut::new(&mut out, TOKENS, WIDTH, WIDTH), Some((&mut kept, 0)), &mut scratch);
        let gradient = out.clone();
        group.bench_function("vjp", |b| {
            b.iter(|| {
                let to = AttentionVjp {
                    tokens: Some((
                        &mut MatMut::new(&mut out, TOKENS, WIDTH, WIDTH),
                        &mut MatMut::new(&mut d_kv, TOKENS, 2 * WIDTH, 2 * WIDTH),
                    )),
                    prompts: Some(&mut MatMut::new(&mut d_p, PROMPTS, 2 * WIDTH, 2 * WIDTH)),
                };
                call.vjp((&kept, 0), Mat::new(&gradient, TOKENS, WIDTH, WIDTH), to, &mut scratch);
            });
        });
    }
}

fn norms(c: &mut Criterion) {
    let mut group = c.benchmark_group("norm");
    group.throughput(Throughput::Elements((ROWS * WIDTH) as u64));
    let stride = row_stride(WIDTH);
    let (x, gradient) = (values(ROWS * stride), values(ROWS * stride));
    let (mut y, mut inverse) = (vec![0.; ROWS * stride], vec![0.; ROWS]);
    group.bench_function("forward", |b| {
        b.iter(|| {
            let to = &mut MatMut::new(&mut y, ROWS, WIDTH, stride);
            layer_norm(Mat::new(&x, ROWS, WIDTH, stride), 1e-5, to, &mut inverse);
        });
    });
    let mut dx = vec![0.; ROWS * stride];
    group.bench_function("vjp", |b| {
        b.iter(|| {
            let to = &mut MatMut::new(&mut dx, ROWS, WIDTH, stride);
            layer_norm_vjp(Mat::new(&y, ROWS, WIDTH, stride), &inverse, Mat::new(&gradient, ROWS, WIDTH, stride), to);
        });
    });
}

criterion_group!(kernels, products, attention, norms);
criterion_main!(kernels);
