# Reference values of models with several grouping factors: nested, crossed, crossed over nested, weighted.
#
#   Rscript levels.R CSV_FOLDER OUT_FOLDER [NAME ...]
#
# CSV_FOLDER holds egsingle.csv, pastes.csv, penicillin.csv, insteval.csv, scotssec.csv and chem97.csv: the Parquet files of the tests, written out
# unchanged. Under "exact": from the formulas, with analytic derivatives, dense matrices by block of rows, and Newton steps until the
# score vanishes; the packages' optimiser stops within about 1e-6 of the optimum, and they differentiate numerically.
suppressMessages({library(lme4); library(lmerTest); library(pbkrtest); library(clubSandwich); library(jsonlite)})
args <- commandArgs(TRUE); csv <- args[1]; out <- args[2]; only <- args[-(1:2)]
want <- function(name) length(only) == 0 || name %in% only
source(file.path(dirname(sub("--file=", "", grep("--file=", commandArgs(), value = TRUE))), "formulas.R"))
rd <- function(n) read.csv(file.path(csv, paste0(n, ".csv")), stringsAsFactors = TRUE)
CTRL <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-9, maxfun = 1e5))
# from there once more: where the likelihood is flat, bobyqa stops 1e-7 above its minimum
AGAIN <- lmerControl(optimizer = "nloptwrap", optCtrl = list(algorithm = "NLOPT_LN_NELDERMEAD", xtol_rel = 1e-12, xtol_abs = 1e-10, ftol_abs = 0, ftol_rel = 0, maxeval = 1e5))
SOFT <- paste(c(R.version$language, paste(R.version$major, R.version$minor, sep = "."),
  sapply(c("lme4", "lmerTest", "pbkrtest", "clubSandwich"), function(p) paste(p, packageVersion(p)))), collapse = " ")
save1 <- function(name, x) {
  write(toJSON(x, digits = NA, auto_unbox = TRUE, na = "null", null = "null"), file.path(out, paste0(name, ".json"))); cat(name, "ok\n") }
plain <- function(f) deparse(f, width.cutoff = 500L)[1]

# Rows in independent blocks with dV / d theta_k: for each random term the lower triangle of its T by columns, last sigma2.
blocks_of <- function(m, by = NULL) {
  Zt <- lapply(getME(m, "Ztlist"), function(z) as(z, "CsparseMatrix")); at <- split(seq_along(Zt), rep(seq_along(m@cnms), lengths(m@cnms)))
  y <- getME(m, "y"); X <- mat(getME(m, "X")); w <- weights(m)
  lapply(if (is.null(by)) list(seq_along(y)) else split(seq_along(y), by, drop = TRUE), function(i) {
    D <- list()
    for (own in at) for (b in seq_along(own)) for (a in b:length(own)) {
      P <- as.matrix(crossprod(Zt[[own[a]]][, i, drop = FALSE], Zt[[own[b]]][, i, drop = FALSE])); D <- c(D, list(if (a == b) P else P + t(P))) }
    list(y = y[i], X = X[i, , drop = FALSE], D = unname(c(D, list(diag(1 / w[i], length(i)))))) })
}
theta_of <- function(m) c(unlist(lapply(VarCorr(m), function(v) vech(as.matrix(v)))), sigma(m)^2)
theta_names <- function(m) { v <- VarCorr(m); f <- names(m@cnms); x <- do.call(rbind, lapply(seq_along(v), function(k) { n <- m@cnms[[k]]; q <- length(n)
    do.call(rbind, lapply(seq_len(q), function(b) data.frame(group = f[k], term1 = n[b], term2 = ifelse(b:q == b, NA, n[b:q])))) }))
  rbind(x, data.frame(group = "Residual", term1 = NA, term2 = NA)) }
exact <- function(m, blocks, reml, clustered) {
  a <- optimum(blocks, theta_of(m), reml, 12); p <- length(a$beta); unit <- function(k) replace(rep(0, p), k, 1)
  x <- list(theta_names = as.list(theta_names(m)), theta = unname(a$theta), theta_se = unname(sqrt(diag(solve(a$observed)))), score = unname(a$score), deviance = a$deviance, estimate = unname(a$beta), vcov = mat(a$Phi),
    satterthwaite_df = sapply(1:p, function(k) satterthwaite(a, unit(k))$DenDF))
  if (reml) x <- c(x, list(kenward_roger_vcov = mat(a$PhiA), kenward_roger_df = sapply(1:p, function(k) kenward_roger(a, unit(k))$DenDF)))
  if (clustered) for (t in c("CR0", "CR1", "CR2")) { r <- robust(a, t); x[[t]] <- r$vcov; x[[paste0(t, "_df")]] <- coef_df(r) }
  x
}
effects_of <- function(m) lapply(ranef(m, condVar = TRUE), function(r) { pv <- attr(r, "postVar"); q <- ncol(r)
  # several terms of one factor: a list of their variances
  v <- if (is.list(pv)) do.call(cbind, lapply(pv, function(a) sapply(seq_len(dim(a)[1]), function(k) a[k, k, ]))) else sapply(seq_len(q), function(k) pv[k, k, ])
  num <- function(x) signif(unname(as.matrix(x)), 10)
  list(level = rownames(r), terms = I(names(r)), value = num(r), cond_var = num(v)) })

# `cluster`: the highest factor when all are nested; `kr`: pbkrtest's n x n matrices; `how`: what the tests do to the rows; `again`: search twice
model <- function(name, data_name, rows, formula, reml = TRUE, cluster = NULL, kr = FALSE, dense = TRUE, satt = TRUE, weights = NULL, how = list(), effects = TRUE, again = dense) {
  if (!want(name)) return(invisible())
  data <<- rows; data$w_ <<- if (is.null(weights)) 1 else eval(parse(text = weights), rows)
  started <- Sys.time()
  fit <- function(start, control) if (is.null(weights)) eval(bquote(lmerTest::lmer(.(formula), data = data, REML = .(reml), start = .(start), control = .(control)))) else
    eval(bquote(lmerTest::lmer(.(formula), data = data, weights = w_, REML = .(reml), start = .(start), control = .(control))))
  m <- fit(NULL, CTRL)
  if (again) m <- fit(getME(m, "theta"), AGAIN)
  seconds <- as.numeric(Sys.time() - started, units = "secs")
  m0 <- as(m, "lmerMod"); m0@call$data <- quote(data)
  cat(sprintf("%s: %.1f s, singular %s, %s\n", name, seconds, isSingular(m0), paste(m0@optinfo$conv$lme4$messages, collapse = "; ")))
  x <- c(list(data = data_name, formula = plain(formula), weights = weights, method = ifelse(reml, "REML", "ML")), how, list(software = SOFT, nobs = nobs(m0), ngroups = as.list(ngrps(m0)),
    deviance = -2 * as.numeric(logLik(m0)), aic = AIC(m0), bic = BIC(m0), fixed = list(term = I(names(fixef(m0))), estimate = I(unname(fixef(m0))), se = I(unname(sqrt(diag(as.matrix(vcov(m0))))))),
    vcov_fixed = mat(vcov(m0)), varcomp = c(as.list(theta_names(m0)), list(vcov = unname(theta_of(m0)))), sigma2 = sigma(m0)^2))
  if (satt) x$satterthwaite_df <- I(unname(coef(summary(m, ddf = "Satterthwaite"))[, "df"]))
  if (kr) { k <- coef(summary(m, ddf = "Kenward-Roger")); x$kenward_roger_df <- I(unname(k[, "df"])); x$kenward_roger_se <- I(unname(k[, "Std. Error"])) }
  if (!is.null(cluster) && is.null(weights)) { cl <- data[[cluster]]
    x$clubsandwich <- list(cluster = cluster)
    for (t in c("CR0", "CR1", "CR2")) { v <- vcovCR(m0, cluster = cl, type = t); x$clubsandwich[[paste0("vcov_", t)]] <- mat(v)
      if (t != "CR0") { ct <- coef_test(m0, vcov = v, test = "Satterthwaite"); x$clubsandwich[[paste0("coef_test_", t)]] <- list(se = I(ct$SE), t = I(ct$tstat), df = I(ct$df_Satt %||% ct$df)) } } }
  if (is.null(cluster) && is.null(weights)) x$clubsandwich_says <- tryCatch({ vcovCR(m0, type = "CR0"); NULL }, error = conditionMessage)
  if (effects) x$ranef <- effects_of(m0)
  if (dense) x$exact <- exact(m0, blocks_of(m0, if (is.null(cluster)) NULL else data[[cluster]]), reml, !is.null(cluster))
  save1(name, x)
}

# Limits of the standard deviations of intercepts, of sigma and of the fixed effects; `reml`: components by the restricted likelihood.
profile_intercepts <- function(m, reml) {
  g <- blocks_of(m)[[1]]; n <- length(g$D); start <- sqrt(theta_of(m)); lo <- c(rep(0, n - 1), 1e-6)
  deviance <- function(par, reml, fix = NULL) { V <- Reduce(`+`, Map(`*`, par^2, g$D)); R <- chol(V); y <- g$y; X <- g$X; p <- 0; extra <- 0
    if (!is.null(fix)) { y <- y - X[, fix[1]] * fix[2]; X <- X[, -fix[1], drop = FALSE] }
    e <- backsolve(R, y, transpose = TRUE); if (ncol(X)) { q <- qr(backsolve(R, X, transpose = TRUE)); e <- qr.resid(q, e); if (reml) { p <- ncol(X); extra <- 2 * sum(log(abs(diag(qr.R(q))))) } }
    (length(y) - p) * log(2 * pi) + 2 * sum(log(diag(R))) + sum(e^2) + extra }
  best <- function(f, x, l) { for (i in 1:3) { o <- nlminb(x, f, lower = l, control = list(rel.tol = 1e-14, x.tol = 1e-12, iter.max = 1000, eval.max = 2000)); x <- o$par }; o }
  limits <- function(f, k, top) { warm <- top$par[-k]; g <- function(v) best(function(z) f(append(z, v, k - 1)), warm, lo[-k])$objective - top$objective - qchisq(0.95, 1); x0 <- top$par[k]; step <- max(0.3 * x0, 0.05)
    b <- x0; while (b > lo[k] && g(b) < 0) b <- max(b - step, lo[k]); low <- if (g(b) < 0) lo[k] else uniroot(g, c(b, x0), tol = 1e-10)$root
    b <- x0; while (g(b) < 0) b <- b + step; c(low, uniroot(g, c(x0, b), tol = 1e-10)$root) }
  f <- function(par) deviance(par, reml); top <- best(f, start, lo); sds <- sapply(seq_len(n), function(k) limits(f, k, top))
  ml <- best(function(par) deviance(par, FALSE), start, lo); off <- pmax(ml$par, 0.1 * sd(g$y)); b <- fixef(m); se <- sqrt(diag(as.matrix(vcov(m))))
  fix <- sapply(seq_along(b), function(k) { h <- function(v) best(function(z) deviance(z, FALSE, c(k, v)), off, lo)$objective - ml$objective - qchisq(0.95, 1)
    c(uniroot(h, c(b[k] - 8 * se[k], b[k]), tol = 1e-10)$root, uniroot(h, c(b[k], b[k] + 8 * se[k]), tol = 1e-10)$root) })
  list(deviance = top$objective, group = I(c(names(m@cnms), "Residual", rep("fixed", length(b)))), lower = I(c(sds[1, ], fix[1, ])), upper = I(c(sds[2, ], fix[2, ])))
}
profile_model <- function(name, data_name, rows, formula, reml) {
  if (!want(name)) return(invisible())
  data <<- rows; m <- eval(bquote(lme4::lmer(.(formula), data = data, REML = .(reml), control = CTRL)))
  x <- list(data = data_name, formula = plain(formula), method = ifelse(reml, "REML", "ML"), software = SOFT,
    exact_profile = c(list(note = "standard deviations by the model's own likelihood, fixed effects by ML: where the deviance, minimised over the rest, is qchisq(0.95, 1) above its minimum; 0 where it stays below"), profile_intercepts(m, reml)))
  if (!reml) { p <- suppressWarnings(confint(m, method = "profile", oldNames = FALSE, quiet = TRUE, devtol = 1e-10)); x$lme4_profile <- list(parm = rownames(p), lower = unname(p[, 1]), upper = unname(p[, 2])) }
  save1(name, x)
}
# fits leave `data` in their call: profiles and refits look it up here
data <- NULL

# ---- what to compute ------------------------------------------------------------------------------------------------------------------------
eg <- rd("egsingle"); pastes <- rd("pastes"); pen <- rd("penicillin"); ie <- rd("insteval"); ss <- rd("scotssec")
seventh <- eg[eg$childid %% 7 == 0, ]; SEVENTH <- list(rows = "childid % 7 = 0")
some <- ie[ie$s %% 60 == 0, ]; SOME <- list(rows = "s % 60 = 0")
growth <- math ~ year * lowinc * black + year * hispanic + female + size + (year | schoolid/childid)
model("egsingle_growth_reml", "egsingle", eg, growth, TRUE, "schoolid")
model("egsingle_growth_ml", "egsingle", eg, growth, FALSE, "schoolid", effects = FALSE)
model("egsingle_slope_at_school_reml", "egsingle", eg, math ~ year * lowinc + (year | schoolid) + (1 | schoolid:childid), TRUE, "schoolid", effects = FALSE)
model("egsingle_slope_at_child_reml", "egsingle", eg, math ~ year * lowinc + (1 | schoolid) + (year | schoolid:childid), TRUE, "schoolid", effects = FALSE)
model("egsingle_diagonal_at_school_ml", "egsingle", eg, math ~ year + female + (year || schoolid) + (year | schoolid:childid), FALSE, "schoolid", effects = FALSE)
model("egsingle_child_predictor_at_school_ml", "egsingle", eg, math ~ year + female + (female + year | schoolid) + (year | schoolid:childid), FALSE, "schoolid", effects = FALSE)
model("egsingle_intercepts_reml", "egsingle", eg, math ~ year + female + lowinc + (1 | schoolid/childid), TRUE, "schoolid", effects = FALSE)
model("egsingle_seventh_reml", "egsingle", seventh, math ~ year * lowinc + female + (year | schoolid/childid), TRUE, "schoolid", kr = TRUE, how = SEVENTH)
model("egsingle_seventh_intercepts_reml", "egsingle", seventh, math ~ year + female + (1 | schoolid/childid), TRUE, "schoolid", kr = TRUE, how = SEVENTH)
model("egsingle_seventh_weighted_reml", "egsingle", seventh, math ~ year * lowinc + (year | schoolid) + (1 | schoolid:childid), TRUE, "schoolid", weights = "1 + black + 0.5*hispanic", how = SEVENTH)
for (r in c(TRUE, FALSE)) { s <- ifelse(r, "reml", "ml")
  model(paste0("pastes_nested_", s), "pastes", pastes, strength ~ 1 + (1 | batch/cask), r, "batch", kr = r)
  model(paste0("pastes_unique_labels_", s), "pastes", pastes, strength ~ 1 + (1 | batch) + (1 | sample), r, "batch", kr = r)
  model(paste0("penicillin_crossed_", s), "penicillin", pen, diameter ~ 1 + (1 | plate) + (1 | sample), r, kr = r)
  profile_model(paste0("profile_pastes_", s), "pastes", pastes, strength ~ 1 + (1 | batch/cask), r)
  profile_model(paste0("profile_penicillin_", s), "penicillin", pen, diameter ~ 1 + (1 | plate) + (1 | sample), r)
}
model("insteval_some_row_slope_reml", "insteval", some, y ~ service + studage + lectage + (service | s) + (1 | d), TRUE, kr = FALSE, how = SOME)
model("insteval_some_column_slope_ml", "insteval", some, y ~ service + lectage + (1 | s) + (studage | dept), FALSE, kr = FALSE, how = SOME)
model("insteval_some_weighted_reml", "insteval", some, y ~ service + (1 | s) + (1 | dept), TRUE, weights = "1 + 0.5*studage", how = SOME)
model("insteval_row_slope_ml", "insteval", ie, y ~ service + studage + lectage + (service | d) + (1 | s), FALSE, dense = FALSE, satt = FALSE, effects = FALSE)
model("insteval_crossed_reml", "insteval", ie, y ~ service + (1 | s) + (1 | d) + (1 | dept:service), TRUE, dense = FALSE, satt = FALSE)
model("insteval_crossed_over_nested_reml", "insteval", ie, y ~ service + (1 | s) + (1 | dept/d), TRUE, dense = FALSE, satt = FALSE, effects = FALSE, again = TRUE)
model("scotssec_crossed_ml", "scotssec", ss, attain ~ sex + verbal + (1 | primary) + (1 | second), FALSE, dense = FALSE)
model("scotssec_slopes_reml", "scotssec", ss, attain ~ sex + verbal + social + (verbal | primary) + (1 | second), TRUE, dense = FALSE)
model("scotssec_crossed_reml", "scotssec", ss, attain ~ sex + verbal + (1 | primary) + (1 | second), TRUE, dense = FALSE)
model("egsingle_three_level_reml", "egsingle", eg, math ~ year + (year | childid) + (year | schoolid), TRUE, "schoolid", effects = FALSE)
model("egsingle_three_level_ml", "egsingle", eg, math ~ year * lowinc + black + hispanic + (year | childid) + (year | schoolid), FALSE, "schoolid", effects = FALSE)
model("chem97_three_level_reml", "chem97", rd("chem97"), score ~ gcsecnt + (1 | school) + (1 | lea), TRUE, dense = FALSE, satt = FALSE, effects = FALSE)
