//! Features of Windows endpoints (Sysmon, PowerShell).

use logster_schema::{Field, Kind, Observation};

use crate::graph::{Attribute, PaneBuilder, Relation, parse_guid};

/// Adds what the observations of a Windows endpoint's pane show.
pub(crate) fn build(pane: &mut PaneBuilder, observations: &[Observation]) {
    for observation in observations {
        pane.at(observation.time_ms);
        let fields = &observation.activity.fields;
        if observation.activity.kind != Kind::Sysmon(1) {
            continue;
        }
        let base = |field| fields.get(field).unwrap_or_default().rsplit('\\').next().unwrap_or_default();
        let pid = |field| fields.get(field).and_then(|p| p.parse().ok());
        let Some(guid) = fields.get(Field::ProcessGuid).and_then(parse_guid) else { continue };
        let process = pane.process_by_guid(guid, pid(Field::ProcessId), true);
        pane.label(process, base(Field::Image));
        pane.attribute(process, Attribute::Command, fields.get(Field::CommandLine).unwrap_or_default());
        if let Some(parent) = fields.get(Field::ParentProcessGuid).and_then(parse_guid) {
            let parent = pane.process_by_guid(parent, pid(Field::ParentProcessId), false);
            pane.label(parent, base(Field::ParentImage));
            pane.edge(parent, process, Relation::Spawned);
        }
    }
}
