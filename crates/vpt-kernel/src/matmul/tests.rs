use super::*;
use crate::Precision;
use crate::row_stride;
use vpt_base::testing::{assert_close, random};

/// A value as `precision` holds it.
fn rounded(x: f32, precision: Precision) -> f64 {
    match precision {
        Precision::F32 => f64::from(x),
        Precision::Bf16 => half::bf16::from_f32(x).to_f64(),
    }
}

/// `transpose`: of the left-hand side as it lies in memory, of the right-hand side as it is packed.
fn check(m: usize, k: usize, n: usize, transpose: [bool; 2], precision: Precision) {
    let [transpose_a, transpose_b] = transpose;
    let (a_stride, c_stride) = (row_stride(if transpose_a { m } else { k }), row_stride(n));
    let a = random(1, a_stride * if transpose_a { k } else { m });
    let b = random(2, k * n);
    let bias = random(3, n);
    let start = random(4, m * c_stride);
    let at = |i: usize, j: usize| rounded(a[if transpose_a { j * a_stride + i } else { i * a_stride + j }], precision);
    let view = if transpose_a { Mat::new(&a, k, m, a_stride).t() } else { Mat::new(&a, m, k, a_stride) };
    let b_view = Mat::new(&b, k, n, n);
    let panels = Panels::pack_as(if transpose_b { b_view.t() } else { b_view }, precision);
    let part = || if transpose_b { panels.t() } else { PanelRange::from(&panels) };
    for (init, with_c, with_bias) in
        [(Init::Zero, 0.0, 0.0), (Init::Bias(&bias), 0.0, 1.0), (Init::Add, 1.0, 0.0), (Init::AddBias(&bias), 1.0, 1.0)]
    {
        let mut c = start.clone();
        matmul(view, part(), MatMut::new(&mut c, m, n, c_stride), init);
        for i in 0..m {
            for j in 0..n {
                let mut want = with_c * f64::from(start[i * c_stride + j]) + with_bias * f64::from(bias[j]);
                want += (0..k).map(|l| at(i, l) * rounded(b[l * n + j], precision)).sum::<f64>();
                assert_close(c[i * c_stride + j], want, 2e-6 * (k as f64).sqrt());
            }
            assert_eq!(c[i * c_stride + n..(i + 1) * c_stride], start[i * c_stride + n..(i + 1) * c_stride]);
        }
    }
}

#[test]
fn products_equal_plain_loops_for_every_tail() {
    for (m, k, n) in [
        (1, 1, 1),
        (3, 5, 7),
        (14, 32, 32),
        (15, 64, 33),
        (29, 257, 48),
        (7, 900, 31),
        (50, 17, 65),
        (23, 400, 144),
        (19, 50, 190),
        (9, 431, 451),
    ] {
        // Miri takes a thousand times as long.
        if cfg!(miri) && m * k * n > 2_000 {
            continue;
        }
        for precision in [Precision::F32, Precision::Bf16] {
            for transpose in [[false, false], [true, false], [false, true], [true, true]] {
                check(m, k, n, transpose, precision);
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes long; attention packs piece by piece too")]
fn a_matrix_packed_piece_by_piece_is_the_matrix() {
    let (k, n) = (2 * DEPTH + 37, 101);
    let b: Vec<f32> = random(2, k * n).iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
    let view = Mat::new(&b, k, n, n);
    for precision in [Precision::F32, Precision::Bf16] {
        // Memory that has held something else.
        let mut panels = Panels::pack_as(Mat::new(&vec![f32::NAN; k * 200], k, 200, 200), Precision::F32);
        panels.reset_as(k, n, precision);
        for (rows, columns) in [(0..131, 0..n), (131..400, 0..33), (131..400, 33..n), (400..k, 0..n)] {
            panels.fill(
                rows.start,
                columns.start,
                view.row_range(rows.start, rows.len()).columns(columns.start, columns.len()),
            );
        }
        assert_eq!(panels.unpack(), b);
        let mut copy = vec![0.0; k * n];
        for (i, x) in b.iter().enumerate() {
            copy[i % n * k + i / n] = *x;
        }
        panels.reset_as(k, n, precision);
        let view = Mat::new(&copy, n, k, k).t();
        for columns in [0..5, 5..70, 70..n] {
            panels.fill(0, columns.start, view.columns(columns.start, columns.len()));
        }
        assert_eq!(panels.unpack(), b);
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes long")]
fn products_with_parts_are_parts_of_the_product() {
    let (m, k, n) = (11, DEPTH + 100, 5 * 96 + 7);
    let (a, b) = (random(1, m * k), random(2, k * n));
    let panels = Panels::pack(Mat::new(&b, k, n, n));
    let a = Mat::new(&a, m, k, k);
    let mut whole = vec![0.0; m * n];
    matmul(a, &panels, MatMut::new(&mut whole, m, n, n), Init::Zero);
    let mut parts = vec![0.0; m * n];
    for columns in [0..96, 96..4 * 96, 4 * 96..n] {
        let (from, len) = (columns.start, columns.len());
        for (rows, init) in [(0..DEPTH, Init::Zero), (DEPTH..k, Init::Add)] {
            let mut c = MatMut::new(&mut parts, m, n, n);
            matmul(a.columns(rows.start, rows.len()), panels.part(rows, columns.clone()), c.columns(from, len), init);
        }
    }
    assert_eq!(parts, whole);

    let mut packed = PackedRows::default();
    packed.pack(a, &panels);
    let mut parts = vec![0.0; m * n];
    for columns in [0..96, 96..n] {
        let (from, len) = (columns.start, columns.len());
        let mut c = MatMut::new(&mut parts, m, n, n);
        matmul(&packed, panels.part(0..k, columns), c.columns(from, len), Init::Zero);
    }
    assert_eq!(parts, whole);
}

#[test]
fn packing_a_transposed_view_equals_packing_its_copy() {
    let b = random(5, 300 * 70);
    let mut copy = vec![0.0; 300 * 70];
    for i in 0..300 {
        for j in 0..70 {
            copy[j * 300 + i] = b[i * 70 + j];
        }
    }
    let panels = Panels::pack(Mat::new(&b, 300, 70, 70).t());
    assert_eq!(panels.unpack(), copy);
}

#[test]
fn a_fused_activation_equals_the_activation_of_the_product() {
    let (m, k, n) = (20, 40, 50);
    let (a, b, bias) = (random(1, m * k), random(2, k * n), random(3, n));
    let panels = Panels::pack(Mat::new(&b, k, n, n));
    let mut plain = vec![0.0; m * n];
    matmul(Mat::new(&a, m, k, k), &panels, MatMut::new(&mut plain, m, n, n), Init::Bias(&bias));
    for activation in [Activation::Gelu, Activation::QuickGelu, Activation::GeluTanh, Activation::Silu] {
        let (mut c, mut d) = (vec![0.0; m * n], vec![0.0; m * n]);
        let view = MatMut::new(&mut c, m, n, n);
        let derivative = Some(MatMut::new(&mut d, m, n, n));
        matmul_activate(Mat::new(&a, m, k, k), &panels, view, &bias, activation, derivative);
        for i in 0..m * n {
            let (y, dy) = activation.reference(f64::from(plain[i]));
            assert_close(c[i], y, 4e-6);
            assert_close(d[i], dy, 4e-6);
        }
        let mut scaled = vec![0.0; m * n];
        let factor = Mat::new(&d, m, n, n);
        matmul_scale(Mat::new(&a, m, k, k), &panels, MatMut::new(&mut scaled, m, n, n), factor);
        for i in 0..m * n {
            assert_close(scaled[i], f64::from(plain[i] - bias[i % n]) * f64::from(d[i]), 4e-6);
        }
    }
}
