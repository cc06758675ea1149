//! What the server answers to, as an `OpenAPI` document.

use serde_json::{Value, json};

/// The document; with the routes that change tasks where there are any.
#[allow(clippy::too_many_lines, reason = "one description a route")]
pub fn document(admin: bool) -> Value {
    let mut paths = json!({
        "/": { "get": plain("A page to try tasks with", "text/html") },
        "/health": { "get": object("Whether the server is alive", &[]) },
        "/v2/health/live": { "get": object("Whether the server is alive", &[]) },
        "/v2/health/ready": { "get": object("Whether it takes requests", &[503]) },
        "/metrics": { "get": plain("Counters for Prometheus", "application/openmetrics-text") },
        "/info": { "get": object("Version, backbone, limits", &[]) },
        "/openapi.json": { "get": object("This document", &[]) },
        "/v1/models": { "get": object("The backbone and its tasks, as OpenAI lists models", &[]) },
        "/v1/models/{model}": { "get": of("model", object("One task: classes, method, metrics", &[400, 404, 503])) },
        "/v1/tasks/{task}/predict": { "post": predict() },
        "/v1/tasks/{task}/attention": { "post": attention() },
        "/v1/predict": { "post": posted(
            "Many tasks about each image; what they share of it is computed once",
            &json!({ "$ref": "#/components/schemas/PredictMany" }),
            &json!({ "$ref": "#/components/schemas/ManyAnswers" }),
        ) },
        "/v1/embeddings": { "post": posted(
            "Embeddings of images, or of texts, in OpenAI's form",
            &json!({ "$ref": "#/components/schemas/Embeddings" }),
            &json!({ "type": "object" }),
        ) },
        "/v2": { "get": object("Name and version, in the Open Inference Protocol", &[]) },
        "/v2/models/{model}": { "get": of("model", object("Inputs and outputs of a task", &[400, 404, 503])) },
        "/v2/models/{model}/ready": { "get": of("model", object("Whether a task can be asked", &[400, 404, 503])) },
        "/v2/models/{model}/infer": { "post": infer(&["model"]) },
        "/v2/models/{model}/versions/{version}": { "get": of("version", of("model", object("Inputs and outputs", &[400, 404, 503]))) },
        "/v2/models/{model}/versions/{version}/ready": { "get": of("version", of("model", object("Whether it can be asked", &[400, 404, 503]))) },
        "/v2/models/{model}/versions/{version}/infer": { "post": infer(&["model", "version"]) },
        "/v2/repository/index": { "post": list_of("Every task, in Triton's form") },
    });
    if admin {
        let body = json!({ "required": true, "content": { "application/octet-stream": { "schema": { "type": "string", "format": "binary" } } } });
        let mut put = of("task", object("Puts a task file into the folder, or another in its place", &REFUSALS));
        put["requestBody"] = body;
        let delete = of("task", object("Takes a task away", &[400, 404, 409]));
        paths["/v1/tasks/{task}"] = json!({ "put": put, "delete": delete });
        paths["/v1/rescan"] = json!({ "post": object("Looks at the folder of tasks now", &[]) });
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "vpt serve",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "One frozen backbone, many learned tasks. Scores are those of `vpt predict`, to the last bit.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "security": [{}, { "bearer": [] }, { "key": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "key": { "type": "apiKey", "in": "header", "name": "X-Api-Key" },
            },
            "schemas": schemas(),
        },
    })
}

/// What a request with a body may be refused with.
const REFUSALS: [u16; 11] = [400, 404, 409, 413, 415, 422, 429, 500, 503, 504, 401];

/// The largest number that is told of; nothing has so many classes.
const MOST: u32 = u32::MAX;

fn schemas() -> Value {
    let images = json!({
        "description": "An image or several, in base64 or as data URIs of base64",
        "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" }, "minItems": 1 }],
    });
    let names = json!({
        "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" }, "minItems": 1 }],
    });
    let top_k = json!({ "type": ["integer", "null"], "minimum": 1, "maximum": MOST });
    let min_score = json!({ "type": ["number", "null"], "minimum": 0, "maximum": 1 });
    let runs = json!({
        "description": "The pixels of the class as COCO's runs: height and width, and runs packed into text, as pycocotools decodes them",
        "type": "object",
        "required": ["size", "counts"],
        "properties": {
            "size": { "type": "array", "items": { "type": "integer" }, "minItems": 2, "maxItems": 2 },
            "counts": { "type": "string" },
        },
    });
    let line = json!({
        "type": "object",
        "required": ["label"],
        "anyOf": [{ "required": ["score"] }, { "required": ["share", "pixels", "mask"] }],
        "properties": {
            "label": { "type": "string" },
            "score": { "type": "number" },
            "bbox": { "type": "array", "items": { "type": "number" }, "minItems": 4, "maxItems": 4 },
            "share": { "description": "Of a task of pixels: the share of them that are of the class", "type": "number" },
            "pixels": { "type": "integer" },
            "mask": runs,
        },
    });
    json!({
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["message", "type", "code", "request_id"],
                    "properties": {
                        "message": { "type": "string" },
                        "type": { "type": "string" },
                        "code": { "type": "integer" },
                        "request_id": { "type": "string" },
                    },
                },
            },
        },
        "InferError": {
            "type": "object",
            "required": ["error"],
            "properties": { "error": { "type": "string" }, "request_id": { "type": "string" } },
        },
        "Line": line,
        "Answers": {
            "description": "A list an image, by falling score",
            "type": "array",
            "items": { "type": "array", "items": { "$ref": "#/components/schemas/Line" } },
        },
        "ManyAnswers": {
            "type": "object",
            "required": ["results"],
            "properties": {
                "results": {
                    "description": "An object an image, with a list for each task",
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": { "type": "array", "items": { "$ref": "#/components/schemas/Line" } },
                    },
                },
            },
        },
        "Predict": {
            "type": "object",
            "required": ["images"],
            "properties": { "images": images, "top_k": top_k, "min_score": min_score },
            "additionalProperties": false,
        },
        "Attention": {
            "type": "object",
            "required": ["images"],
            "properties": { "images": images },
            "additionalProperties": false,
        },
        "PredictMany": {
            "type": "object",
            "required": ["images", "tasks"],
            "properties": { "images": images, "tasks": names, "top_k": top_k, "min_score": min_score },
            "additionalProperties": false,
        },
        "Embeddings": {
            "type": "object",
            "required": ["model", "input"],
            "properties": {
                "model": { "type": "string", "description": "A task, or the backbone" },
                "input": {
                    "description": "Images as data URIs, or texts where the backbone reads them",
                    "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
                },
                "encoding_format": { "enum": ["float", "base64"] },
                "dimensions": { "type": ["integer", "null"], "minimum": 1 },
                "normalize": { "type": "boolean" },
            },
        },
        "Infer": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": { "type": ["string", "null"] },
                "parameters": { "type": "object" },
                "inputs": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "shape", "datatype"],
                        "properties": {
                            "name": { "enum": ["image", "pixel_values"] },
                            "shape": { "type": "array", "items": { "type": "integer", "minimum": 0 } },
                            "datatype": { "enum": ["BYTES", "FP32"] },
                            "parameters": { "type": "object" },
                            "data": { "type": "array" },
                        },
                    },
                },
                "outputs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "properties": { "name": { "type": "string" }, "parameters": { "type": "object" } },
                    },
                },
            },
        },
    })
}

/// A refusal with this status.
fn refusal(status: u16, schema: &str) -> (String, Value) {
    let described = match status {
        400 => "Malformed",
        401 => "No key, or an unknown one",
        404 => "No such task",
        409 => "Not as things are",
        413 => "Too large: body, image, or number of images",
        415 => "Not an image",
        422 => "An image that cannot be decoded, or a task file that cannot be used",
        429 => "The queue is full; see Retry-After",
        503 => "The task cannot be used now, or the server is ending; see Retry-After",
        504 => "Not answered in time",
        _ => "A fault of the server",
    };
    let content = json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{schema}") } } });
    (status.to_string(), json!({ "description": described, "content": content }))
}

/// A route that answers with this.
fn operation(summary: &str, content: &Value, refusals: &[u16], schema: &str) -> Value {
    let mut responses = json!({ "200": { "description": "OK", "content": content } });
    for &status in refusals.iter().chain(&[401]) {
        let (status, refusal) = refusal(status, schema);
        responses[status] = refusal;
    }
    json!({ "summary": summary, "responses": responses })
}

fn plain(summary: &str, kind: &str) -> Value {
    let mut content = json!({});
    content[kind] = json!({ "schema": { "type": "string" } });
    operation(summary, &content, &[], "Error")
}

fn object(summary: &str, refusals: &[u16]) -> Value {
    // Both forms of errors, by where they stand.
    let content = json!({ "application/json": { "schema": { "type": "object" } } });
    let mut operation = operation(summary, &content, refusals, "Error");
    for status in refusals {
        let either = json!({ "anyOf": [
            { "$ref": "#/components/schemas/Error" },
            { "$ref": "#/components/schemas/InferError" },
        ] });
        operation["responses"][status.to_string()]["content"]["application/json"]["schema"] = either;
    }
    operation
}

fn list_of(summary: &str) -> Value {
    let content = json!({ "application/json": { "schema": { "type": "array", "items": { "type": "object" } } } });
    operation(summary, &content, &[], "InferError")
}

/// The same with a name in its address.
fn of(name: &str, mut operation: Value) -> Value {
    let parameter = json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } });
    match operation["parameters"].as_array_mut() {
        Some(parameters) => parameters.push(parameter),
        None => operation["parameters"] = json!([parameter]),
    }
    operation
}

/// The same with what may stand behind the address.
fn with_query(mut operation: Value) -> Value {
    let fields = [
        ("top_k", json!({ "type": "integer", "minimum": 1, "maximum": MOST })),
        ("min_score", json!({ "type": "number", "minimum": 0, "maximum": 1 })),
    ];
    let mut parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    parameters.extend(fields.map(|(name, schema)| json!({ "name": name, "in": "query", "schema": schema })));
    operation["parameters"] = Value::Array(parameters);
    operation
}

fn posted(summary: &str, request: &Value, answer: &Value) -> Value {
    let content = json!({ "application/json": { "schema": answer } });
    let mut operation = operation(summary, &content, &REFUSALS, "Error");
    operation["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": request } } });
    if summary.starts_with("Many") { with_query(operation) } else { operation }
}

fn predict() -> Value {
    let file = json!({ "schema": { "type": "string", "format": "binary" } });
    let form = json!({ "schema": {
        "type": "object",
        "properties": { "image": { "type": "array", "items": { "type": "string", "format": "binary" } } },
    } });
    let answer = json!({ "$ref": "#/components/schemas/Answers" });
    let mut operation = posted("One task about an image or several", &json!({}), &answer);
    operation["requestBody"] = json!({
        "required": true,
        "content": {
            "application/json": { "schema": { "$ref": "#/components/schemas/Predict" } },
            "multipart/form-data": form,
            "image/jpeg": file,
            "image/png": file,
            "application/octet-stream": file,
        },
    });
    with_query(of("task", operation))
}

/// The same bodies as [`predict`], of one image; the answer is a picture.
fn attention() -> Value {
    let mut operation = predict();
    operation["summary"] = json!("Where a task looks in an image: attention of the last block laid over it");
    let of = json!({ "name": "of", "in": "query", "schema": { "enum": ["features", "prompts"] } });
    operation["requestBody"]["content"]["application/json"]["schema"] =
        json!({ "$ref": "#/components/schemas/Attention" });
    let task = operation["parameters"][0].take();
    operation["parameters"] = json!([task, of]);
    let shares = json!({
        "description": "What looks, and what share of its attention goes to patches, to prompts, to class token and registers",
        "schema": { "type": "string" },
    });
    operation["responses"]["200"] = json!({
        "description": "OK",
        "headers": { "X-Vpt-Attention": shares },
        "content": { "image/png": { "schema": { "type": "string", "format": "binary" } } },
    });
    operation
}

fn infer(names: &[&str]) -> Value {
    let request = json!({ "$ref": "#/components/schemas/Infer" });
    let content = json!({ "application/json": { "schema": { "type": "object" } } });
    let mut operation = operation("One task, in the Open Inference Protocol", &content, &REFUSALS, "InferError");
    operation["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": request } } });
    names.iter().fold(operation, |operation, name| of(name, operation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_lead_somewhere_and_every_route_tells_what_it_answers() {
        for admin in [false, true] {
            let document = document(admin);
            let text = document.to_string();
            for reference in text.split("\"#/components/schemas/").skip(1) {
                let name = reference.split('"').next().unwrap();
                assert!(document["components"]["schemas"][name].is_object(), "{name}");
            }
            let paths = document["paths"].as_object().unwrap();
            assert_eq!(paths.contains_key("/v1/rescan"), admin);
            for (path, operations) in paths {
                for (method, operation) in operations.as_object().unwrap() {
                    assert!(operation["responses"]["200"].is_object(), "{method} {path}");
                    for name in path.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
                        let parameters = operation["parameters"].as_array().unwrap();
                        assert!(parameters.iter().any(|p| p["name"] == name), "{method} {path}: {name}");
                    }
                }
            }
        }
    }
}
