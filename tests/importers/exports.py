"""Small exports of our own writing, one of each format, in the shapes of the tools' real exports and documentation."""

from __future__ import annotations

import json
from typing import Any

SUPERSET = {
    "charts/Revenue_7.yaml": """
        slice_name: Revenue by region
        description: <p>Net of <b>returns</b> &amp; tax</p>
        viz_type: echarts_timeseries_bar
        params:
          x_axis: order_date
          groupby: [region, {label: Band, sqlExpression: "CASE WHEN 1 THEN 2 END", hasCustomLabel: true}]
          metric: count
          metrics:
          - {label: Net revenue, expressionType: SQL, sqlExpression: SUM(x), hasCustomLabel: true}
          - {label: "SUM(price * units) / NULLIF(SUM(units), 0)", expressionType: SQL,
             sqlExpression: "SUM(price * units) / NULLIF(SUM(units), 0)"}
          - {label: null, column: {column_name: margin}}
        uuid: 11111111-0000-4000-8000-000000000001
        dataset_uuid: 22222222-0000-4000-8000-000000000001
        version: 1.0.0
        """,
    "charts/Untitled_8.yaml": """
        slice_name: ''
        description: null
        viz_type: pie
        params: '{"groupby": ["channel"], "metric": "units"}'
        uuid: 11111111-0000-4000-8000-000000000002
        dataset_uuid: null
        """,
    "charts/Nothing_9.yaml": """
        slice_name: null
        viz_type: table
        params: {}
        uuid: 11111111-0000-4000-8000-000000000003
        """,
    "datasets/shop/orders.yaml": """
        table_name: orders
        columns: []
        uuid: 22222222-0000-4000-8000-000000000001
        """,
    "dashboards/Sales_1.yaml": """
        dashboard_title: Sales
        position:
          CHART-a: {type: CHART, meta: {uuid: 11111111-0000-4000-8000-000000000001, sliceNameOverride: Seen}}
          CHART-b: {type: CHART, meta: {uuid: 11111111-0000-4000-8000-000000000002}}
          ROOT_ID: {type: ROOT}
        """,
    "metadata.yaml": "version: 1.0.0\ntype: Dashboard\n",
}

GRAFANA_CLASSIC: dict[str, Any] = {
    "uid": "web",
    "title": "Web servers",
    "tags": ["nginx"],
    "schemaVersion": 39,
    "templating": {"list": [{"name": "host", "label": "Host name"}, {"name": "job"}]},
    "panels": [
        {
            "id": 2,
            "type": "timeseries",
            "title": "Requests of $host / $__interval, by [[job]]",
            "description": "Requests < 7.0 MB, per <namespace>",
            "datasource": {"type": "prometheus", "uid": "${DS}"},
            "targets": [
                {
                    "expr": 'sum by (status, job) (rate(http_requests_total{host="$host"}[5m])) / on(job) up',
                    "legendFormat": "{{status}} {{ method }}",
                }
            ],
        },
        {"id": 3, "type": "text", "title": "Read me"},
        {
            "id": 4,
            "type": "row",
            "title": "Collapsed",
            "panels": [
                {"id": 5, "type": "table", "title": "", "datasource": None, "targets": [{"expr": "up"}]},
                {"type": "stat", "title": "No number", "datasource": "Loki", "targets": [{"expr": '{a="b"} |= "x"'}]},
                {
                    "id": 6,
                    "type": "barchart",
                    "title": "Orders",
                    "datasource": {"type": "postgres"},
                    "targets": [{"rawSql": "SELECT region, sum(a + b) AS total FROM shop.orders GROUP BY region, day"}],
                },
            ],
        },
    ],
    "rows": [{"title": "Old", "panels": [{"id": 9, "type": "graph", "title": "Old one", "datasource": "-- Mixed --"}]}],
}

GRAFANA_V1 = {
    "apiVersion": "dashboard.grafana.app/v1beta1",
    "kind": "Dashboard",
    "metadata": {"name": "web-v1"},
    "spec": {
        "title": "One",
        "schemaVersion": 41,
        "panels": [{"id": 1, "type": "stat", "title": "Uptime", "libraryPanel": {"uid": "x", "name": "Shared"}}],
    },
}

GRAFANA_V2 = {
    "apiVersion": "dashboard.grafana.app/v2beta1",
    "kind": "Dashboard",
    "metadata": {"name": "web-v2"},
    "spec": {
        "title": "Two",
        "tags": ["v2"],
        "variables": [{"kind": "QueryVariable", "spec": {"name": "zone", "label": "Zone"}}],
        "layout": {"kind": "GridLayout", "spec": {}},
        "elements": {
            "panel-1": {
                "kind": "Panel",
                "spec": {
                    "id": 1,
                    "title": "Load in ${zone:csv}",
                    "description": "",
                    "data": {
                        "kind": "QueryGroup",
                        "spec": {
                            "queries": [
                                {
                                    "kind": "PanelQuery",
                                    "spec": {
                                        "refId": "A",
                                        "query": {
                                            "kind": "DataQuery",
                                            "group": "prometheus",
                                            "datasource": {"name": "p"},
                                            "spec": {"expr": "avg by (zone) (node_load1)"},
                                        },
                                    },
                                }
                            ]
                        },
                    },
                    "vizConfig": {"kind": "VizConfig", "group": "timeseries", "spec": {}},
                },
            },
            "panel-2": {"kind": "Panel", "spec": {"id": 2, "title": "Words", "vizConfig": {"kind": "text"}}},
            "panel-3": {"kind": "LibraryPanel", "spec": {"id": 3, "title": "", "libraryPanel": {"name": "Shared"}}},
        },
    },
}


def _visualization(
    native_id: str, title: str, state: dict[str, Any], references: list[dict[str, str]]
) -> dict[str, Any]:
    attributes = {"title": title, "description": "", "visState": json.dumps(state)}
    return {"id": native_id, "type": "visualization", "attributes": attributes, "references": references}


OPENSEARCH: list[dict[str, Any]] = [
    _visualization(
        "visitors",
        "Visitors by country",
        {
            "title": "something else",
            "type": "pie",
            "aggs": [
                {"schema": "metric", "type": "cardinality", "params": {"field": "ip", "customLabel": "Visitors"}},
                {"schema": "metric", "type": "sum", "params": {"field": "bytes"}},
                {"schema": "segment", "type": "terms", "params": {"field": "geo.country"}},
            ],
        },
        [{"type": "search", "id": "s1", "name": "search_0"}],
    ),
    _visualization("note", "Note", {"type": "markdown"}, []),
    _visualization(
        "tsvb",
        "Errors",
        {
            "type": "metrics",
            "params": {"index_pattern": "logs-*", "series": [{"metrics": [{"type": "count"}], "terms_field": "code"}]},
        },
        [],
    ),
    {
        "id": "s1",
        "type": "search",
        "attributes": {"title": "All"},
        "references": [{"type": "index-pattern", "id": "p1"}],
    },
    {"id": "p1", "type": "index-pattern", "attributes": {"title": "access-*"}},
    {
        "id": "d1",
        "type": "dashboard",
        "attributes": {"title": "Traffic", "panelsJSON": "[]"},
        "references": [{"type": "visualization", "id": "visitors", "name": "panel_0"}],
    },
    {"exportedCount": 6, "missingRefCount": 0},
]

KIBANA: list[dict[str, Any]] = [
    {
        "id": "lens-1",
        "type": "lens",
        "coreMigrationVersion": "8.8.0",
        "attributes": {
            "title": "Sales by category",
            "visualizationType": "lnsXY",
            "state": {
                "visualization": {"preferredSeriesType": "bar_stacked"},
                "datasourceStates": {
                    "formBased": {
                        "layers": {
                            "a": {
                                "columns": {
                                    "1": {"label": "Top categories", "isBucketed": True, "sourceField": "category"},
                                    "2": {"label": "Sum of price", "isBucketed": False, "sourceField": "price"},
                                }
                            }
                        }
                    }
                },
            },
        },
        "references": [{"type": "index-pattern", "id": "shop", "name": "layer"}],
    },
    {
        "id": "board",
        "type": "dashboard",
        "coreMigrationVersion": "8.8.0",
        "attributes": {
            "title": "Shop",
            "panelsJSON": json.dumps(
                [
                    {
                        "type": "lens",
                        "panelIndex": "7",
                        "title": "Held by value",
                        "embeddableConfig": {"attributes": {"visualizationType": "lnsMetric", "state": {}}},
                    }
                ]
            ),
        },
        "references": [{"type": "lens", "id": "lens-1", "name": "a:panel_a"}],
    },
]

METABASE: dict[str, Any] = {
    "card/4.json": {
        "id": 4,
        "entity_id": "abcdefghijklmnopqrstu",
        "name": "Orders a month",
        "description": None,
        "display": "line",
        "table_id": 10,
        "collection_id": 3,
        "dataset_query": {"stages": [{"aggregation": [["count", {}]], "breakout": []}]},
        "result_metadata": [
            {"name": "CREATED_AT", "display_name": "Created At: Month", "id": 5, "base_type": "type/DateTime"},
            {"name": "count", "display_name": "Count", "field_ref": ["aggregation", 0], "base_type": "type/Integer"},
        ],
    },
    "card/5.json": {"id": 5, "name": "Old", "archived": True, "display": "pie", "dataset_query": {}},
    "card/6.json": {
        "id": 6,
        "name": "No entity",
        "display": "pie",
        "dataset_query": {"native": {}},
        "collection_id": 3,
    },
    "dashboard/2.json": {"id": 2, "name": "Shop", "dashcards": [{"card_id": 4, "card": {"id": 4}}]},
    "collection.json": [{"id": 3, "name": "Finance", "is_personal": False}],
    "database.json": [{"engine": "h2", "tables": [{"id": 10, "name": "ORDERS", "display_name": "Orders"}]}],
}

DBT = {
    "shop/dbt_project.yml": "name: shop\nversion: 1.0.0\n",
    "shop/models/exposures.yml": """
        version: 2
        exposures:
          - name: weekly_kpis
            label: How are we doing?
            type: dashboard
            url: https://bi.example.org/1
            tags: [kpi]
            description: n/a
            depends_on: [ref('orders'), "source('raw', 'payments')"]
          - name: from_metabase
            type: analysis
            url: "javascript:alert(1)"
            description: |
              ### Visualization: Scalar

              Returned orders

              #### Query

              ```
              select count(*) from payments
              ```

              #### Metadata

              Metabase ID: __29__
            depends_on: []
        """,
}

DBT_MANIFEST = {
    "metadata": {"dbt_schema_version": "https://schemas.getdbt.com/dbt/manifest/v12.json"},
    "nodes": {},
    "exposures": {
        "exposure.shop.weekly_kpis": {
            "name": "weekly_kpis",
            "package_name": "shop",
            "label": "How are we doing?",
            "type": "dashboard",
            "depends_on": {"nodes": ["model.shop.orders"], "macros": []},
        }
    },
}

LIGHTDASH = {
    "charts/orders.yml": """
        name: Orders by status
        description: ""
        tableName: orders
        metricQuery:
          exploreName: orders
          dimensions: [orders_status]
          metrics: [orders_count]
          tableCalculations: [{name: share, displayName: Share of all}]
        chartConfig: {type: cartesian}
        slug: orders-by-status
        spaceSlug: finance
        """,
    "dashboards/shop.yml": """
        name: Shop
        slug: shop
        tiles: [{type: saved_chart, properties: {chartSlug: orders-by-status}}]
        """,
}

LOOKER = {
    "web.dashboard.lookml": """
        - dashboard: web
          title: Web
          elements:
          - name: users
            title: Users
            type: looker_line
            explore: sessions
            dimensions: sessions.day
            measures: [sessions.user_count]
            note_text: Of the last month
          - name: by_field
            type: table
            explore: sessions
            fields: [sessions.country, sessions.total_revenue]
            hidden: !!null
          - name: header
            type: text
        """
}
