// Grafana's own types, with each panel's options and fields held to those of its kind, which Grafana leaves open.
import type { Options as Stat } from "@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen";
import type { FieldConfig as TableField, Options as Table } from "@grafana/schema/dist/types/raw/composable/table/panelcfg/x/types.gen";
import type { FieldConfig as SeriesField, Options as Series } from "@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen";
import type { Dashboard, FieldConfig, FieldConfigSource, Panel, RowPanel } from "@grafana/schema/dist/types/raw/dashboard/x/types.gen";

// Every datasource is the variable, so that the dashboard works wherever it is imported.
interface Datasource {
  type: "prometheus";
  uid: "${datasource}";
}

interface Query {
  refId: string;
  datasource: Datasource;
  expr: string;
  legendFormat: string;
  editorMode: "code";
  format: "time_series" | "table";
  instant: boolean;
  range: boolean;
}

interface Fields<Custom> extends Omit<FieldConfigSource, "defaults"> {
  defaults: Omit<FieldConfig, "custom"> & { custom?: Custom };
}

interface PanelOf<Kind, Options, Custom> extends Omit<Panel, "type" | "datasource" | "targets" | "options" | "fieldConfig"> {
  type: Kind;
  title: string;
  description: string;
  datasource: Datasource;
  targets: Query[];
  options: Partial<Options>;
  fieldConfig: Fields<Custom>;
}

export interface Checked extends Omit<Dashboard, "panels"> {
  panels: (
    | PanelOf<"stat", Stat, never>
    | PanelOf<"table", Table, Partial<TableField>>
    | PanelOf<"timeseries", Series, SeriesField>
    | RowPanel
  )[];
}
