//! As much of JSON Schema (draft 2020-12) as the schemas under `tools/schema` use; any other keyword is an error.

use serde_json::Value;
use std::collections::BTreeSet;

/// A schema and the places of it that were met with a value other than null.
pub struct Schema {
    root: Value,
    pub met: BTreeSet<String>,
}

impl Schema {
    pub fn new(text: &str) -> Self {
        let root: Value = serde_json::from_str(text).unwrap();
        assert_eq!(root["$schema"], "https://json-schema.org/draft/2020-12/schema");
        Self { root, met: BTreeSet::new() }
    }

    /// What is wrong with a value, if anything is.
    pub fn check(&mut self, value: &Value) -> Result<(), String> {
        let root = self.root.clone();
        self.walk(&root, value, "")
    }

    /// Every property that the schema speaks of, as `met` names them, and whether its table demands it.
    pub fn properties(&self) -> Vec<(String, bool)> {
        let tables = self.root["$defs"].as_object().unwrap().iter().map(|(name, table)| (name.as_str(), table));
        let each = tables.chain([("", &self.root)]).filter_map(|(name, table)| {
            let properties = table.get("properties")?.as_object()?;
            assert_eq!(table["additionalProperties"], Value::Bool(false), "{name} takes any property");
            let demands = |key: &String| table["required"].as_array().unwrap().contains(&key.as_str().into());
            Some(properties.keys().map(move |key| (format!("{name}.{key}"), demands(key))).collect::<Vec<_>>())
        });
        each.flatten().collect()
    }

    fn walk(&mut self, schema: &Value, value: &Value, table: &str) -> Result<(), String> {
        let failed = |reason: String| Err(format!("{table}: {reason}, but there is {value}"));
        let keywords = match schema {
            Value::Bool(true) => return Ok(()),
            Value::Bool(false) => return failed("nothing may be here".into()),
            schema => schema.as_object().unwrap(),
        };
        let list = |key: &str| keywords.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        for (keyword, wanted) in keywords {
            let number = || (value.as_f64(), wanted.as_f64().unwrap());
            let length = || (value.as_array().map(Vec::len), wanted.as_u64().unwrap() as usize);
            let holds = match keyword.as_str() {
                "$schema" | "$id" | "$defs" | "title" | "description" => true,
                "$ref" => {
                    let name = wanted.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                    let target = self.root["$defs"].get(name).unwrap_or_else(|| panic!("no {name}")).clone();
                    self.walk(&target, value, name)?;
                    true
                }
                "anyOf" => {
                    let mut each = wanted.as_array().unwrap().iter().map(|s| self.walk(s, value, table));
                    let reasons: Vec<String> = each.by_ref().map_while(Result::err).collect();
                    if reasons.len() == wanted.as_array().unwrap().len() {
                        return Err(reasons.join("; "));
                    }
                    true
                }
                "type" => match wanted {
                    Value::Array(names) => names.iter().any(|name| is(value, name)),
                    name => is(value, name),
                },
                "const" => value == wanted,
                "minimum" => matches!(number(), (None, _)) || number().0 >= Some(number().1),
                "maximum" => matches!(number(), (None, _)) || number().0 <= Some(number().1),
                "minItems" => length().0.is_none_or(|n| n >= length().1),
                "maxItems" => length().0.is_none_or(|n| n <= length().1),
                "required" => value
                    .as_object()
                    .is_none_or(|o| list("required").iter().all(|k| o.contains_key(k.as_str().unwrap()))),
                "properties" => {
                    for (key, part) in value.as_object().into_iter().flatten() {
                        let Some(of) = wanted.get(key) else { continue };
                        self.walk(of, part, &format!("{table}.{key}"))?;
                        if !part.is_null() {
                            self.met.insert(format!("{table}.{key}"));
                        }
                    }
                    true
                }
                "additionalProperties" => {
                    assert_eq!(wanted, &Value::Bool(false));
                    let known = keywords["properties"].as_object().unwrap();
                    value.as_object().is_none_or(|o| o.keys().all(|key| known.contains_key(key)))
                }
                "prefixItems" => {
                    for (part, of) in value.as_array().into_iter().flatten().zip(wanted.as_array().unwrap()) {
                        self.walk(of, part, table)?;
                    }
                    true
                }
                "items" => {
                    let before = list("prefixItems").len();
                    for part in value.as_array().into_iter().flatten().skip(before) {
                        self.walk(wanted, part, table)?;
                    }
                    true
                }
                other => panic!("the keyword '{other}' is not known here"),
            };
            if !holds {
                return failed(format!("'{keyword}' is {wanted}"));
            }
        }
        Ok(())
    }
}

fn is(value: &Value, name: &Value) -> bool {
    match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type '{other}'"),
    }
}
