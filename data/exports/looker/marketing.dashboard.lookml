- dashboard: marketing
  title: Marketing
  layout: newspaper
  elements:
  - name: header
    type: text
    title_text: What we spend
  - name: cost_per_click
    title: Cost per click
    type: looker_line
    explore: campaigns
    dimensions: [campaigns.week, campaigns.network]
    measures: [campaigns.cost_per_click]
    note_text: Of paid advertising alone
  - name: newsletter_sign_ups
    type: looker_column
    explore: subscribers
    fields: [subscribers.month, subscribers.count]
    hidden: !!null
