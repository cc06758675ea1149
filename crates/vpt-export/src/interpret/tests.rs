use super::*;
use crate::graph::{Attr, Dim, Element, Graph, Opset};

/// The outputs of a graph with one input `x`.
fn outputs(build: impl Fn(&mut Graph<'static>, String) -> Vec<String>, x: Tensor) -> Result<Vec<Tensor>> {
    let mut graph = Graph::new(Opset::V17, Element::F32, false);
    let dims: Vec<Dim> = x.shape.iter().map(|&n| Dim::Fixed(n)).collect();
    let input = graph.input("x", Element::F32, &dims);
    let made = build(&mut graph, input);
    for (name, value) in ["a", "b", "c"].into_iter().zip(&made) {
        graph.output(name, value, &[]);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    crate::file::write(&graph, &[("k", "v".to_owned())], &path, false)?.keep()?;
    let program = Program::open(&path, None)?;
    assert_eq!((program.inputs(), program.metadata()["k"].as_str()), (&["x".to_owned()][..], "v"));
    program.run(vec![("x", x)], 2)
}

fn one(build: impl Fn(&mut Graph<'static>, String) -> String, x: Tensor) -> Tensor {
    outputs(|graph, x| vec![build(graph, x)], x).unwrap().remove(0)
}

fn counted(shape: &[usize]) -> Tensor {
    Tensor::floats(shape, (0..shape.iter().product::<usize>()).map(|i| i as f32).collect())
}

#[test]
fn dimensions_of_one_repeat() {
    let sum = one(
        |graph, x| {
            let column = graph.floats("c", &[2, 1], vec![10., 20.]);
            let sum = graph.add(&x, &column);
            let row = graph.floats("r", &[1, 3], vec![0.25, 0.5, 0.75]);
            graph.mul(&sum, &row)
        },
        counted(&[2, 3]),
    );
    assert_eq!(sum, Tensor::floats(&[2, 3], vec![2.5, 5.5, 9., 5.75, 12., 18.75]));
}

#[test]
fn parts_are_cut_and_put_together() {
    let made = one(
        |graph, x| {
            let first = graph.slice(&x, 1, 0, 1);
            let rest = graph.slice(&x, 1, 1, 3);
            let both = graph.concat(&[&rest, &first], 1);
            let turned = graph.transpose(&both, &[1, 0]);
            graph.reshape(&turned, &[0, 1, -1])
        },
        counted(&[2, 3]),
    );
    assert_eq!(made, Tensor::floats(&[3, 1, 2], vec![1., 4., 2., 5., 0., 3.]));
}

#[test]
fn a_convolution_is_its_sum_over_neighbours() {
    let x = counted(&[1, 1, 3, 3]);
    let made = one(
        |graph, x| {
            let weight = graph.floats("w", &[1, 1, 3, 3], vec![1.; 9]);
            let bias = graph.floats("b", &[1], vec![0.5]);
            graph.node_with("Conv", &[&x, &weight, &bias], vec![("pads", Attr::Ints(vec![1; 4]))])
        },
        x,
    );
    assert_eq!(made, Tensor::floats(&[1, 1, 3, 3], vec![8.5, 15.5, 12.5, 21.5, 36.5, 27.5, 20.5, 33.5, 24.5]));
}

#[test]
fn norms_products_and_activations_are_what_their_formulas_say() {
    let x = Tensor::floats(&[2, 2], vec![1., 3., -2., 2.]);
    let made = outputs(
        |graph, x| {
            let n = graph.layer_norm(&x, 2, None, 0.);
            let p = graph.matmul(&x, &n);
            let e = graph.node("Erf", &[&x]);
            vec![n, p, e]
        },
        x,
    )
    .unwrap();
    assert_eq!(made[0], Tensor::floats(&[2, 2], vec![-1., 1., -1., 1.]));
    assert_eq!(made[1], Tensor::floats(&[2, 2], vec![-4., 4., 0., 0.]));
    let erf = made[2].as_floats().unwrap();
    for (found, expected) in erf.iter().zip([0.842_700_8, 0.999_977_9, -0.995_322_3, 0.995_322_3]) {
        assert!((found - expected).abs() < 2e-7, "{found} {expected}");
    }
}

#[test]
fn what_is_not_written_here_is_refused_by_name() {
    let error = outputs(|graph, x| vec![graph.node("Einsum", &[&x])], counted(&[1])).unwrap_err().to_string();
    assert!(error.contains("Einsum is not among those that are written"), "{error}");
    let error = outputs(|graph, x| vec![graph.add(&x, &"nowhere".to_owned())], counted(&[1])).unwrap_err().to_string();
    assert!(error.contains("there is no value `nowhere`"), "{error}");
}

#[test]
fn damaged_files_are_refused() {
    let mut graph = Graph::new(Opset::V17, Element::F32, false);
    let x = graph.input("x", Element::F32, &[Dim::Fixed(2)]);
    let w = graph.floats("w", &[2], vec![1., 2.]);
    let y = graph.add(&x, &w);
    graph.output("y", &y, &[Dim::Fixed(2)]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    crate::file::write(&graph, &[], &path, false).unwrap().keep().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for at in 0..whole.len() {
        for byte in [0, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            std::fs::write(&path, bytes).unwrap();
            let run = |program: Program| program.run(vec![("x", counted(&[2]))], 1);
            refused += usize::from(Program::open(&path, None).and_then(run).is_err());
        }
    }
    assert!(refused > whole.len() / 2, "{refused}");
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(Program::open(&path, None).is_err());
}

#[test]
fn weights_in_a_file_beside_are_read_from_the_folder_alone() {
    let mut graph = Graph::new(Opset::V17, Element::F32, false);
    let x = graph.input("x", Element::F32, &[Dim::Fixed(600)]);
    let [a, b] = ["a", "b"].map(|name| graph.floats(name, &[600], vec![2.; 600]));
    let y = graph.mul(&x, &a);
    let y = graph.mul(&y, &b);
    graph.output("y", &y, &[Dim::Fixed(600)]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    crate::file::write(&graph, &[], &path, true).unwrap().keep().unwrap();
    let made = Program::open(&path, None).unwrap().run(vec![("x", counted(&[600]))], 1).unwrap();
    assert_eq!(made[0].as_floats().unwrap()[599..], [4. * 599.]);
    assert_eq!(std::fs::metadata(dir.path().join("m.onnx.data")).unwrap().len(), 4096 + 2400);
    let mut bytes = std::fs::read(&path).unwrap();
    while let Some(at) = bytes.windows(11).position(|window| window == b"m.onnx.data") {
        bytes[at..at + 11].copy_from_slice(b"../onnxdata");
    }
    std::fs::write(&path, bytes).unwrap();
    let error = Program::open(&path, None).unwrap_err().to_string();
    assert!(error.contains("outside of its folder"), "{error}");
}
