# Roles for service accounts, the nodes' permission to ask for them on behalf of their own cluster only, and Prometheus's
# way to the metrics.
#
#   module "podcred" {
#     source         = "./deploy/terraform"
#     cluster_name   = "my-cluster"
#     node_role_name = "my-cluster-nodes"
#     service_accounts = {
#       "web/app" = { policy_arns = ["arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess"] }
#     }
#   }

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.99"
    }
  }
}

variable "cluster_name" {
  type = string
}

variable "node_role_name" {
  description = "Role of the nodes, which podcred signs its calls with"
  type        = string
}

variable "service_accounts" {
  description = "Service accounts by NAMESPACE/NAME, and the policies that their pods get"
  type = map(object({
    policy_arns = list(string)
  }))
}

variable "node_security_group_id" {
  description = "Group of the nodes, to let Prometheus reach the agents' metrics"
  type        = string
  default     = null
}

variable "prometheus_security_group_id" {
  description = "Group of what scrapes them; no NetworkPolicy applies to the host's network"
  type        = string
  default     = null
}

data "aws_eks_cluster" "this" {
  name = var.cluster_name
}

data "aws_iam_policy_document" "nodes" {
  statement {
    sid       = "AskForCredentialsOfPods"
    actions   = ["eks-auth:AssumeRoleForPodIdentity"]
    resources = [data.aws_eks_cluster.this.arn]
  }

  # AmazonEKSWorkerNodePolicy and AmazonEKSWorkerNodeMinimalPolicy allow it for every cluster.
  statement {
    sid           = "OfNoOtherCluster"
    effect        = "Deny"
    actions       = ["eks-auth:AssumeRoleForPodIdentity"]
    not_resources = [data.aws_eks_cluster.this.arn]
  }
}

resource "aws_iam_role_policy" "nodes" {
  name   = "podcred"
  role   = var.node_role_name
  policy = data.aws_iam_policy_document.nodes.json
}

# The conditions hold a role to its service account even where somebody makes another association with it. An association
# with session tags disabled does not send them.
data "aws_iam_policy_document" "trust" {
  for_each = var.service_accounts

  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]

    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/eks-cluster-arn"
      values   = [data.aws_eks_cluster.this.arn]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/kubernetes-namespace"
      values   = [split("/", each.key)[0]]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/kubernetes-service-account"
      values   = [split("/", each.key)[1]]
    }
  }
}

resource "aws_iam_role" "pods" {
  for_each = var.service_accounts

  name_prefix        = "${substr(replace(each.key, "/", "-"), 0, 37)}-"
  assume_role_policy = data.aws_iam_policy_document.trust[each.key].json
}

resource "aws_iam_role_policy_attachment" "pods" {
  for_each = merge([
    for account, wanted in var.service_accounts : {
      for arn in wanted.policy_arns : "${account} ${arn}" => { account = account, arn = arn }
    }
  ]...)

  role       = aws_iam_role.pods[each.value.account].name
  policy_arn = each.value.arn
}

resource "aws_eks_pod_identity_association" "pods" {
  for_each = var.service_accounts

  cluster_name    = var.cluster_name
  namespace       = split("/", each.key)[0]
  service_account = split("/", each.key)[1]
  role_arn        = aws_iam_role.pods[each.key].arn
}

resource "aws_vpc_security_group_ingress_rule" "metrics" {
  count = var.prometheus_security_group_id == null ? 0 : 1

  description                  = "Prometheus to the metrics of podcred"
  security_group_id            = var.node_security_group_id
  referenced_security_group_id = var.prometheus_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 2705
  to_port                      = 2705
}
