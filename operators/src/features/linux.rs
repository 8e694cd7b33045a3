//! (to come)

use logster_schema::Observation;

use crate::graph::PaneBuilder;

/// Adds what the observations of a Linux endpoint's pane show.
pub(crate) fn build(pane: &mut PaneBuilder, observations: &[Observation]) {
    for observation in observations {
        pane.at(observation.time_ms);
    }
}
