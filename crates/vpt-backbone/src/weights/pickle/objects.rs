//! What a pickle makes: watched as it is made, and the dictionary of tensors among it.
//!
//! A crafted pickle of a few kilobytes could otherwise fill the memory or the call stack.

use candle_core::pickle::{Object, Stack};

/// A pickle of ten thousand tensors takes half of the visits.
const MAX_VISITS: usize = 4 << 20;
/// A tensor of a dictionary is eight levels deep, one of a module in a module in a scripted model three more for each.
const MAX_DEPTH: usize = 48;
/// What a training program calls the dictionary of tensors that it saves beside other things; of a teacher and a student (DINO,
/// `iBOT`) the teacher is the model.
const INNER: [&str; 3] = ["state_dict", "model", "teacher"];

/// The named values of a checkpoint: those of its dictionary of tensors, which may lie beside other things, or of the modules of
/// a scripted model, whose names are the path to them.
///
/// # Errors
/// It is no dictionary and no module.
pub(super) fn state_dict(object: Object) -> Result<Vec<(String, Object)>, String> {
    let items = match object {
        Object::Dict(items) => items,
        module @ Object::Build { .. } => {
            let mut found = Vec::new();
            add_module(module, "", &mut found);
            return Ok(found);
        }
        _ => return Err("no dictionary of tensors".to_owned()),
    };
    let inner = INNER.iter().find_map(|wanted| {
        let is_inner = |(key, value): &(Object, Object)| {
            matches!(key, Object::Unicode(name) if name == wanted) && matches!(value, Object::Dict(_))
        };
        items.iter().position(is_inner)
    });
    let items = match inner.and_then(|at| items.get(at)) {
        Some((_, Object::Dict(inner))) => inner.clone(),
        _ => items,
    };
    Ok(items.into_iter().filter_map(|(key, value)| Some((key.unicode().ok()?, value))).collect())
}

/// Adds what a scripted module holds, and the modules in it; `path` stands before the names.
fn add_module(module: Object, path: &str, found: &mut Vec<(String, Object)>) {
    let Object::Build { args, .. } = module else { return };
    let Object::Dict(items) = *args else { return };
    for (key, value) in items {
        let Ok(key) = key.unicode() else { continue };
        let name = if path.is_empty() { key } else { format!("{path}.{key}") };
        match value {
            module @ Object::Build { .. } => add_module(module, &name, found),
            value => found.push((name, value)),
        }
    }
}

/// The object that the pickle at the beginning of `pickle` makes, every step of which is watched, and what stands behind it.
pub(super) fn unpickle(pickle: &[u8]) -> Result<(Object, &[u8]), String> {
    let mut stack = Stack::empty();
    let mut rest = pickle;
    let mut visits = MAX_VISITS;
    loop {
        let Some(&op) = rest.first() else { return Err("the pickle ends too early".to_owned()) };
        // A string's length is believed, and memory taken for it.
        if op == b'X' {
            let length = rest.get(1..5).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
            if length.is_none_or(|n| n as usize > rest.len() - 5) {
                return Err("a string of the pickle is longer than the pickle".to_owned());
            }
        }
        let done = stack.read(&mut rest).map_err(|error| brief(&error))?;
        if done {
            return Ok((stack.finalize().map_err(|error| brief(&error))?, rest));
        }
        // What is on top has grown, or been copied to or from the memory of what was seen before.
        let weighed =
            matches!(op, b'q' | b'r' | b'h' | b'j' | b't' | b'R' | b'Q' | b's' | b'u' | b'd' | b'b' | b'a' | b'e')
                || (0x81..=0x87).contains(&op);
        if let (true, Some(top)) = (weighed, stack.stack().last()) {
            weigh(top, MAX_DEPTH, &mut visits)?;
        }
    }
}

/// Candle's message, without the backtrace that may follow.
pub(super) fn brief(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Takes the number of objects in `object` from `visits`; fails if that is used up, or they are nested too deep.
fn weigh(object: &Object, depth: usize, visits: &mut usize) -> Result<(), String> {
    let (Some(depth), Some(left)) = (depth.checked_sub(1), visits.checked_sub(1)) else {
        return Err("the pickle is nested too deep or too large".to_owned());
    };
    *visits = left;
    match object {
        Object::Tuple(items) | Object::List(items) => items.iter().try_for_each(|item| weigh(item, depth, visits)),
        Object::Dict(items) => items.iter().try_for_each(|(key, value)| {
            weigh(key, depth, visits)?;
            weigh(value, depth, visits)
        }),
        Object::Reduce { callable, args } | Object::Build { callable, args } => {
            weigh(callable, depth, visits)?;
            weigh(args, depth, visits)
        }
        Object::PersistentLoad(id) => weigh(id, depth, visits),
        // A long string takes as much as many small objects.
        Object::Unicode(text) => {
            *visits = visits.saturating_sub(text.len() / 64);
            Ok(())
        }
        _ => Ok(()),
    }
}
