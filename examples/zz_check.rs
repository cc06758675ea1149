use std::io::Write;
use std::path::Path;
use std::time::Instant;
use vpt::data::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    match a[1].as_str() {
        "info" => {
            let t = Instant::now();
            let d = Dataset::open(&a[2], 1).unwrap();
            println!("open {:?}", t.elapsed());
            let t = Instant::now();
            let s = d.summary();
            println!("{} {:?}", serde_json::to_string(&s).unwrap(), t.elapsed());
        }
        "dump" => {
            // ck out images..
            let p = Preprocess::from_file(&Path::new(&a[2]).join("preprocessor_config.json")).unwrap();
            let mut out = std::fs::File::create(&a[3]).unwrap();
            for f in &a[4..] {
                let i = decode(Path::new(f)).unwrap();
                out.write_all(&p.pixels(&i).unwrap().pixels).unwrap();
            }
        }
        "time" => {
            let p = Preprocess::clip(224);
            let files = &a[2..];
            for _ in 0..3 {
                let t = Instant::now();
                let im: Vec<_> = files.iter().map(|f| decode(Path::new(f)).unwrap()).collect();
                let td = t.elapsed();
                let t = Instant::now();
                let px: Vec<_> = im.iter().map(|i| p.pixels(i).unwrap()).collect();
                let tr = t.elapsed();
                let mut o = vec![0f32; 224 * 224 * 3];
                let t = Instant::now();
                for x in &px {
                    p.normalise_into(&x.pixels, &mut o);
                }
                let tn = t.elapsed();
                let n = files.len() as f64;
                println!(
                    "decode {:.2} ms resize {:.2} ms normalise {:.2} ms -> {:.0} img/s",
                    td.as_secs_f64() * 1e3 / n,
                    tr.as_secs_f64() * 1e3 / n,
                    tn.as_secs_f64() * 1e3 / n,
                    n / (td + tr + tn).as_secs_f64()
                );
            }
        }
        _ => {
            // loader over a data set
            let d = Dataset::open(&a[2], 1).unwrap();
            let th: usize = a[3].parse().unwrap();
            let t = Instant::now();
            let o = LoaderOptions {
                preprocess: Preprocess::clip(224),
                augment: Augment::default(),
                seed: 1,
                epoch: 0,
                batch: 32,
                threads: th,
                cache: None,
            };
            let n = d.train.len().min(2000);
            let mut h = blake3::Hasher::new();
            for b in Loader::new(d.train.clone().into(), epoch_order(n, 1, 0), o).unwrap() {
                let b = b.unwrap();
                for v in &b.pixels {
                    h.update(&v.to_le_bytes());
                }
            }
            println!("{} img {:.0} img/s {}", n, n as f64 / t.elapsed().as_secs_f64(), h.finalize());
        }
    }
}
